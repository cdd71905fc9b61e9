//! Frames between the host and the agent in a virtual machine.
//!
//! A frame is: length of the rest (u32, big endian), kind (u8), command number (u32, big endian), payload. Several
//! commands run at once; the host chooses their numbers. One that never began ends with [`Kind::Failed`], every other
//! one with [`Kind::Exit`], exactly once, after all of its output.

use std::io::{self, Read, Write};

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Host: are you there?
    Ping,
    /// Agent: I am; the payload is a [`super::guest::Report`] as JSON.
    Pong,
    /// Host: run this; the payload is a `Command` as JSON, without its standard input.
    Run,
    /// Host: more of the standard input of a command that is still to be started.
    Input,
    /// Host: send SIGKILL to the command's process group.
    Kill,
    /// Host: end everything and power off.
    PowerOff,
    /// Agent: bytes from standard output.
    Stdout,
    /// Agent: bytes from standard error.
    Stderr,
    /// Agent: the command ended; the payload is an `Exit` as JSON.
    Exit,
    /// Agent: the command did not start, or its end could not be learnt; the payload is the reason as text.
    Failed,
}

const KINDS: [Kind; 10] = [
    Kind::Ping,
    Kind::Pong,
    Kind::Run,
    Kind::Input,
    Kind::Kill,
    Kind::PowerOff,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Exit,
    Kind::Failed,
];

/// The longest rest of a frame; anything longer is a broken stream, not a frame.
const LONGEST: usize = 4 << 20;
/// The longest payload that senders put into one frame.
pub(crate) const CHUNK: usize = 256 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub kind: Kind,
    pub id: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: Kind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, id, payload: payload.into() }
    }

    /// Writes it in one piece, so that frames of several threads behind one lock never mix.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len() + 5).map_err(|_| broken("a frame of over 4 GiB"))?;
        let mut bytes = Vec::with_capacity(self.payload.len() + 9);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next one; `None` at an end between frames.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 9];
        let first = loop {
            match from.read(&mut head[..1]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..])?;
        let [a, b, c, d, kind, e, f, g, h] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let kind = KINDS.get(usize::from(kind)).copied().ok_or_else(|| broken("a frame of unknown kind"))?;
        if !(5..=LONGEST).contains(&length) {
            return Err(broken("a frame of impossible length"));
        }
        let mut payload = vec![0; length - 5];
        from.read_exact(&mut payload)?;
        Ok(Some(Self { kind, id: u32::from_be_bytes([e, f, g, h]), payload }))
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_kind_survive_the_wire_in_order() {
        let frames: Vec<Frame> =
            KINDS.iter().zip(0..).map(|(kind, id)| Frame::new(*kind, id << 8, vec![7; id as usize])).collect();
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).unwrap();
        }
        let mut from = wire.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut from).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_cut_or_foreign_stream_is_an_error_and_not_an_end() {
        let mut wire = Vec::new();
        Frame::new(Kind::Stdout, 1, "abc").write(&mut wire).unwrap();
        for cut in 1..wire.len() {
            assert!(Frame::read(&mut &wire[..cut]).is_err(), "cut at {cut}");
        }
        let text = b"Kernel panic - not syncing";
        assert_eq!(Frame::read(&mut text.as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
