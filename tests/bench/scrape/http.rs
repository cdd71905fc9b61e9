//! How long answers take.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Answers for each figure.
const TIMES: usize = 50;

/// Milliseconds of so many answers.
pub fn times(address: &str, path: &str) -> Result<Vec<f64>> {
    (0..TIMES).map(|_| Ok(get(address, path)?.0.as_secs_f64() * 1e3)).collect()
}

/// The time and the body of an answer.
pub fn get(address: &str, path: &str) -> Result<(Duration, String)> {
    let begin = Instant::now();
    let mut connection = TcpStream::connect(address).context("nobody serves HTTP")?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let took = begin.elapsed();
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok((took, body.to_owned()))
}

/// Lines of the text that are series.
pub fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[expect(clippy::cast_precision_loss, reason = "a text is far shorter than a float is exact")]
pub fn kib(text: &str) -> f64 {
    text.len() as f64 / 1024.0
}
