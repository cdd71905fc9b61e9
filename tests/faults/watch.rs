//! What the driver and the kernel say of themselves: HTTP, processes, threads.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Where the driver serves HTTP.
pub const ADDRESS: &str = "127.0.0.1:9808";

/// Status and body of a GET.
pub async fn ask(path: &str) -> (u16, String) {
    let mut connection = tokio::net::TcpStream::connect(ADDRESS).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of one metric, named with its labels as `/metrics` writes them.
pub async fn metric(name: &str) -> Option<f64> {
    let (status, text) = ask("/metrics").await;
    assert_eq!(status, 200, "{text}");
    // Every series has the node, which is one here.
    let text = text.replace("{node=\"node-1\"}", "").replace("{node=\"node-1\",", "{").replace(",node=\"node-1\"", "");
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.find(|(found, _)| *found == name).map(|(_, value)| value.parse().unwrap())
}

/// How many threads a process has.
pub fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// The states of the processes that a process started and that still run: `D` waits for a disk.
pub fn children(pid: i32) -> Vec<(String, char)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        // One may end while we look.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let mut fields = tail.split(' ');
        let (state, parent) = (fields.next().unwrap(), fields.next().unwrap());
        if parent == pid.to_string() && state != "Z" {
            let name = head.split_once('(').unwrap().1.to_owned();
            found.push((name, state.chars().next().unwrap()));
        }
    }
    found
}
