//! [`Known`]: the locks that were shown, by the ids by which the page asks for them again; and
//! [`shown`]: what a text of strangers looks like on the page.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use crate::key::LockKey;

/// How many locks are known at once.
const LOCKS: usize = 4096;
/// Longer texts are cut off.
const CHARACTERS: usize = 160;

/// The locks that were shown of late.
///
/// The id is not the fingerprint: a stranger may look for two keys with the same one, of which an
/// operator then would release the other. It is a hash with a seed that is known to this process
/// alone.
#[derive(Default)]
pub(super) struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    keys: HashMap<u64, LockKey>,
    /// The oldest first.
    order: VecDeque<u64>,
}

impl Known {
    /// Returns the id of a lock, by which it is found from now on.
    pub(super) fn id(&self, key: &LockKey) -> String {
        let id = key.hashed();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.keys.insert(id, key.clone()).is_none() {
            inner.order.push_back(id);
            if inner.order.len() > LOCKS
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.keys.remove(&oldest);
            }
        }
        format!("{id:016x}")
    }

    pub(super) fn key(&self, id: &str) -> Option<LockKey> {
        let id = u64::from_str_radix(id, 16).ok()?;
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.keys.get(&id).cloned()
    }
}

/// Returns a text as it is shown: cut off, and with nothing that cannot be seen or that changes how
/// the rest looks, such as the marks that turn the direction of writing.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars().take(CHARACTERS) {
        match is_invisible(character) {
            true => write!(shown, "{}", character.escape_unicode()).expect("a String takes it"),
            false => shown.push(character),
        }
    }
    if text.chars().nth(CHARACTERS).is_some() {
        shown.push('…');
    }
    shown
}

fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_id_until_many_others_were_shown() {
        let known = Known::default();
        let key = |number: usize| LockKey::new(format!("k:{number}")).unwrap();
        let id = known.id(&key(0));
        assert_eq!(id, known.id(&key(0)));
        assert_eq!(known.key(&id), Some(key(0)));
        for number in 1..LOCKS {
            known.id(&key(number));
        }
        assert_eq!(known.key(&id), Some(key(0)));
        known.id(&key(LOCKS));
        assert_eq!(known.key(&id), None);
        assert_eq!(known.key("no id"), None);
    }

    #[test]
    fn what_would_change_how_the_text_looks_is_spelled_out() {
        assert_eq!(shown("account:7 ü 🔒"), "account:7 ü 🔒");
        assert_eq!(shown("a\u{202e}b\r\n\0"), "a\\u{202e}b\\u{d}\\u{a}\\u{0}");
        assert_eq!(shown(&"k".repeat(1000)).chars().count(), CHARACTERS + 1);
    }
}
