//! [`object`]: writes JSON. What a serializer could do besides is not needed here.

use std::fmt::{Display, Write};
use std::time::Duration;

/// Returns an object, as text.
pub(super) fn object(fill: impl FnOnce(&mut Object<'_>)) -> String {
    let mut text = String::new();
    Object::write(&mut text, fill);
    text
}

/// An object that is being written.
pub(super) struct Object<'a> {
    text: &'a mut String,
    is_empty: bool,
}

impl Object<'_> {
    fn write(text: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        text.push('{');
        fill(&mut Object {
            text,
            is_empty: true,
        });
        text.push('}');
    }

    fn name(&mut self, name: &str) -> &mut String {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.text.push(',');
        }
        write_text(self.text, name);
        self.text.push(':');
        self.text
    }

    pub(super) fn text(&mut self, name: &str, value: &str) -> &mut Self {
        write_text(self.name(name), value);
        self
    }

    /// Writes a number that JavaScript can hold.
    pub(super) fn count(&mut self, name: &str, value: impl TryInto<u64>) -> &mut Self {
        let value = value.try_into().unwrap_or(u64::MAX);
        write(self.name(name), value);
        self
    }

    /// Writes a fencing token as text: JavaScript could not hold the number.
    pub(super) fn token(&mut self, name: &str, value: u64) -> &mut Self {
        self.text(name, &value.to_string())
    }

    pub(super) fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        write(self.name(name), value);
        self
    }

    pub(super) fn null(&mut self, name: &str) -> &mut Self {
        self.name(name).push_str("null");
        self
    }

    /// Writes milliseconds, with three decimals.
    pub(super) fn millis(&mut self, name: &str, time: Duration) -> &mut Self {
        let millis = (time.as_secs_f64() * 1e6).round() / 1e3;
        write(self.name(name), millis);
        self
    }

    pub(super) fn maybe<T>(
        &mut self,
        name: &str,
        value: Option<T>,
        write: impl FnOnce(&mut Self, T),
    ) -> &mut Self {
        let Some(value) = value else {
            return self.null(name);
        };
        write(self, value);
        self
    }

    pub(super) fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        Object::write(self.name(name), fill);
        self
    }

    pub(super) fn array<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut fill: impl FnMut(&mut Object<'_>, T),
    ) -> &mut Self {
        let text = self.name(name);
        text.push('[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            Object::write(text, |object| fill(object, item));
        }
        text.push(']');
        self
    }
}

fn write(text: &mut String, value: impl Display) {
    write!(text, "{value}").expect("a String takes any text");
}

/// Also escapes `<`, so that the text is harmless wherever somebody pastes it.
fn write_text(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '<' | '\0'..' ' | '\u{2028}' | '\u{2029}' => {
                write(text, format_args!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_values_are_written_and_strange_texts_escaped() {
        let strange = "</script><script>alert(\"1\")\\ \r\n\0 ü 🔒 \u{2028}";
        let json = object(|json| {
            json.text(strange, strange)
                .count("count", 7u64)
                .token("token", u64::MAX)
                .millis("time", Duration::from_micros(1500))
                .flag("flag", true)
                .null("nothing")
                .maybe("none", None::<u64>, |_, _| unreachable!())
                .array("array", [1u64, 2], |item, n| {
                    item.count("n", n);
                })
                .object("empty", |_| {});
        });
        let strange =
            r#""\u003c/script>\u003cscript>alert(\"1\")\\ \u000d\u000a\u0000 ü 🔒 \u2028""#;
        let expected = format!(
            "{{{strange}:{strange},\"count\":7,\"token\":\"18446744073709551615\",\"time\":1.5,\
             \"flag\":true,\"nothing\":null,\"none\":null,\"array\":[{{\"n\":1}},{{\"n\":2}}],\
             \"empty\":{{}}}}"
        );
        assert_eq!(json, expected);
    }
}
