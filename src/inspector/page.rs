//! The page: one document, with its style and its script inside.

use std::sync::OnceLock;

use bytes::Bytes;
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

/// The page, and the policy by which a browser runs no other script.
pub(super) struct Page {
    pub(super) html: Bytes,
    pub(super) policy: String,
}

/// Returns the page. It is the same for all.
pub(super) fn page() -> &'static Page {
    static PAGE: OnceLock<Page> = OnceLock::new();
    PAGE.get_or_init(|| Page {
        html: DOCUMENT
            .replace("/* style.css */", STYLE)
            .replace("/* script.js */", SCRIPT)
            .into(),
        policy: format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            hash(STYLE),
            hash(SCRIPT)
        ),
    })
}

/// Returns the hash of an inline style or script, as a policy has it.
fn hash(content: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(content)))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |place: usize| u32::from(three.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit > three.len() {
                true => '=',
                false => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 4648.
    #[test]
    fn base64_is_that_of_everyone() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn the_page_has_its_style_and_script_and_nothing_from_elsewhere() {
        let html = std::str::from_utf8(&page().html).unwrap();
        assert!(html.contains(STYLE) && html.contains(SCRIPT));
        // In the script, this would end it. A namespace is a name, and loads nothing.
        assert!(!SCRIPT.contains("</script") && !SCRIPT.contains("<!--"));
        let addresses =
            html.matches("//").count() - html.matches("http://www.w3.org/2000/svg").count();
        let comments = SCRIPT
            .lines()
            .filter(|line| line.trim_start().starts_with("// "))
            .count();
        assert_eq!(addresses, comments, "an address of another site");
        assert!(!html.contains(" style=") && !html.contains(" onclick="));
    }
}
