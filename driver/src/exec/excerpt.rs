//! What a command said on standard error, read as it comes.
//!
//! **Invariant.** However much is written, the writer never waits, and only the beginning and the end are kept: a gRPC
//! message has to carry them.

use std::collections::VecDeque;
use std::io::{PipeReader, Read as _};
use std::thread::JoinHandle;

/// How much of each end is kept.
const KEPT: usize = 2048;

/// What was kept of a stream.
#[derive(Debug, Default)]
struct Excerpt {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

/// A stream that is being read.
#[derive(Debug)]
pub(super) struct Drain(JoinHandle<Excerpt>);

/// Reads to the end of the stream, on a thread of its own.
pub(super) fn drain(mut from: PipeReader) -> std::io::Result<Drain> {
    let read = move || {
        let mut excerpt = Excerpt::default();
        let mut buffer = [0; 8192];
        // An error ends the stream as its end does: there is nobody to tell but the reader of what came so far.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            excerpt.take(buffer.get(..count).unwrap_or_default());
        }
        excerpt
    };
    std::thread::Builder::new().name("stderr".to_owned()).spawn(read).map(Drain)
}

impl Drain {
    /// What was said, once the last writer has closed the stream.
    pub(super) fn text(self) -> String {
        self.0.join().map(|excerpt| excerpt.text()).unwrap_or_default()
    }
}

impl Excerpt {
    fn take(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(KEPT - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
    }

    fn text(mut self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let tail = self.tail.make_contiguous();
        if self.left_out == 0 {
            self.head.extend_from_slice(tail);
            return text(&self.head).trim().to_owned();
        }
        format!("{} [... {} bytes left out ...] {}", text(&self.head), self.left_out, text(tail)).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_whole_and_of_much_both_ends() {
        let said = |length: usize| {
            let mut excerpt = Excerpt::default();
            let text: Vec<u8> = (0..length).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
            text.chunks(700).for_each(|chunk| excerpt.take(chunk));
            (excerpt.text(), String::from_utf8(text).unwrap())
        };
        for length in [0, 1, KEPT, KEPT + 1, 2 * KEPT] {
            let (kept, all) = said(length);
            assert_eq!(kept, all);
        }
        let (kept, all) = said(2 * KEPT + 5);
        let expected = format!("{} [... 5 bytes left out ...] {}", &all[..KEPT], &all[KEPT + 5..]);
        assert_eq!(kept, expected);
    }
}
