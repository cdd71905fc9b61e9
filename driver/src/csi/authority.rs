//! Lets kubelet's registration client in, whose requests the HTTP/2 library refuses.
//!
//! kubelet dials a registration socket by its path, and its gRPC library makes that path the authority of the requests:
//! `%2Fvar%2Flib%2Fkubelet%2F...`. A percent sign is no part of a host, so the library below tonic resets the stream
//! (`PROTOCOL_ERROR`) before any of our code sees it. kubelet's CSI client says `localhost` by itself; only
//! registration connections pass through here.
//!
//! **Invariant.** Of what the client sends, the authority alone is changed, to `localhost`. What cannot be read as
//! HTTP/2 ends the connection.

use std::io;

use httlib_hpack::Decoder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::UnixStream;

const AUTHORITY: &[u8] = b":authority";
const LOCALHOST: &[u8] = b"localhost";

/// The first bytes of a connection (RFC 9113, 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// The largest frame a client may send to a server that did not allow more (RFC 9113, 6.5.2).
const MAX_FRAME: usize = 16_384;
/// More than any header block of a registration request.
const MAX_BLOCK: usize = 4 * MAX_FRAME;

// Frame types and flags (RFC 9113, 6.2 and 6.10).
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The connection as a server may take it.
#[must_use]
pub fn localhost(connection: UnixStream) -> DuplexStream {
    let (server, ours) = tokio::io::duplex(MAX_FRAME * 2);
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = connection.into_split();
        let (mut from_server, mut to_server) = tokio::io::split(ours);
        let requests = async {
            let result = rewrite(&mut from_client, &mut to_server).await;
            to_server.shutdown().await.ok();
            result
        };
        let answers = async {
            let result = tokio::io::copy(&mut from_server, &mut to_client).await;
            to_client.shutdown().await.ok();
            result
        };
        if let Err(error) = tokio::try_join!(requests, answers) {
            tracing::debug!(%error, "a registration connection broke");
        }
    });
    server
}

/// Passes everything on until the client closes.
async fn rewrite(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut decoder = Decoder::default();
    while let Some(frame) = Frame::read(from).await? {
        if frame.kind == HEADERS {
            let (flags, stream) = (frame.flags & END_STREAM, frame.stream);
            let block = header_block(frame, from).await?;
            let payload = with_localhost(&mut decoder, block)?;
            Frame { kind: HEADERS, flags: flags | END_HEADERS, stream, payload }.write(to).await?;
        } else {
            frame.write(to).await?;
        }
    }
    Ok(())
}

/// The whole header block that a HEADERS frame begins.
async fn header_block(first: Frame, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let (mut flags, stream) = (first.flags, first.stream);
    let mut block = first.fragment()?;
    while flags & END_HEADERS == 0 {
        let next = Frame::read(from).await?.ok_or_else(|| malformed("a header block is cut off"))?;
        if next.kind != CONTINUATION || next.stream != stream || block.len() + next.payload.len() > MAX_BLOCK {
            return Err(malformed("a header block is not continued, or too long"));
        }
        flags = next.flags;
        block.extend(next.payload);
    }
    Ok(block)
}

/// The block with another authority. It is written without compression, so that the server's table stays empty and
/// need not agree with the client's.
fn with_localhost(decoder: &mut Decoder<'_>, mut block: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut fields = Vec::new();
    decoder.decode(&mut block, &mut fields).map_err(|_| malformed("a header block cannot be decoded"))?;
    let mut written = Vec::new();
    for (name, value, _) in fields {
        // A literal without indexing, with a literal name (RFC 7541, 6.2.2).
        written.push(0);
        put_string(&mut written, &name);
        put_string(&mut written, if name == AUTHORITY { LOCALHOST } else { &value });
    }
    Ok(written)
}

/// A string as it is, not Huffman-coded (RFC 7541, 5.2).
fn put_string(to: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    // An integer in seven bits, or those full and the rest in groups of seven (RFC 7541, 5.1).
    let mut rest = text.len();
    if rest < PREFIX {
        to.extend(low_bits(rest));
    } else {
        to.extend(low_bits(PREFIX));
        rest -= PREFIX;
        while rest > PREFIX {
            to.extend(low_bits(rest % 128).map(|bits| bits | 0x80));
            rest /= 128;
        }
        to.extend(low_bits(rest));
    }
    to.extend_from_slice(text);
}

/// The lowest byte of a number.
fn low_bits(number: usize) -> Option<u8> {
    number.to_le_bytes().first().copied()
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: Vec<u8>,
}

impl Frame {
    /// The next frame, or nothing when the client has closed between two.
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut header = [0; FRAME_HEADER];
        if from.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[1..]).await?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if length > MAX_FRAME {
            return Err(malformed("a frame is too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Some(Self { kind, flags, stream, payload }))
    }

    async fn write(self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let [.., a, b, c] = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        if self.payload.len() > MAX_FRAME {
            return Err(malformed("a header block is too long"));
        }
        let [s0, s1, s2, s3] = self.stream;
        to.write_all(&[a, b, c, self.kind, self.flags, s0, s1, s2, s3]).await?;
        to.write_all(&self.payload).await
    }

    /// The part of a HEADERS frame's payload that belongs to the header block (RFC 9113, 6.2).
    fn fragment(mut self) -> io::Result<Vec<u8>> {
        let mut begin = 0;
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            padding = usize::from(*self.payload.first().ok_or_else(|| malformed("an empty padded frame"))?);
            begin += 1;
        }
        if self.flags & PRIORITY != 0 {
            begin += 5;
        }
        let end = self.payload.len().checked_sub(padding).filter(|end| *end >= begin);
        let end = end.ok_or_else(|| malformed("a frame is all padding"))?;
        self.payload.truncate(end);
        Ok(self.payload.split_off(begin))
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Flvm.quarry.storage-reg.sock";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:authority` with this value as grpc-go sends it: a literal with indexing, its name from the static table.
    fn authority(value: &str) -> Vec<u8> {
        let mut field = vec![0x41];
        put_string(&mut field, value.as_bytes());
        field
    }

    async fn rewritten(frames: &[Vec<u8>]) -> io::Result<Vec<u8>> {
        let input = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat();
        let mut output = Vec::new();
        rewrite(&mut input.as_slice(), &mut output).await?;
        Ok(output.split_off(PREFACE))
    }

    fn fields(block: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        Decoder::default().decode(&mut block.to_vec(), &mut fields).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        fields.into_iter().map(|(name, value, _)| (text(name), text(value))).collect()
    }

    #[tokio::test]
    async fn only_the_authority_changes() {
        let long = "x".repeat(300);
        // POST, the authority, a header of 300 bytes; then DATA, which stays; then the authority from the client's table.
        let mut block = [vec![0x83], authority(PATH), vec![0x00]].concat();
        put_string(&mut block, b"grpc-long");
        put_string(&mut block, long.as_bytes());
        let data = frame(0, END_STREAM, b"\0\0\0\0\0");
        let output =
            rewritten(&[frame(HEADERS, END_HEADERS, &block), data.clone(), frame(HEADERS, 5, &[0xbe])]).await.unwrap();

        let mut rest = output.as_slice();
        let first = Frame::read(&mut rest).await.unwrap().unwrap();
        assert_eq!((first.kind, first.flags, first.stream), (HEADERS, END_HEADERS, [0, 0, 0, 1]));
        let expected = [(":method", "POST"), (":authority", "localhost"), ("grpc-long", &long)];
        assert_eq!(fields(&first.payload), expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(rest.starts_with(&data));
        rest = &rest[data.len()..];
        let second = Frame::read(&mut rest).await.unwrap().unwrap();
        assert_eq!(fields(&second.payload), [(":authority".to_owned(), "localhost".to_owned())]);
        assert_eq!(second.flags, END_STREAM | END_HEADERS);
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn padded_and_continued_blocks_are_read_whole() {
        let block = authority(PATH);
        let (head, tail) = block.split_at(10);
        let padded = [&[3][..], &[0; 5], head, &[0; 3]].concat();
        let frames = [frame(HEADERS, PADDED | PRIORITY, &padded), frame(CONTINUATION, END_HEADERS, tail)];
        let output = rewritten(&frames).await.unwrap();
        let only = Frame::read(&mut output.as_slice()).await.unwrap().unwrap();
        assert_eq!(fields(&only.payload), [(":authority".to_owned(), "localhost".to_owned())]);
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        for frames in [
            vec![frame(HEADERS, END_HEADERS, &[0xff, 0xff, 0xff, 0xff, 0x0f])],
            vec![frame(HEADERS, PADDED | END_HEADERS, &[9])],
            vec![frame(HEADERS, 0, &[0x83]), frame(0, 0, &[])],
            vec![vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]],
            vec![vec![0, 0]],
        ] {
            assert!(rewritten(&frames).await.is_err(), "{frames:?}");
        }
    }
}
