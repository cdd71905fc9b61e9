//! What the driver is asked to do while its disks are recorded.

use quarry_tests::in_vm::DriverUnderTest;

use crate::client::Client;
use crate::history::{Act, History, Recorder};
use crate::layers::shell;

/// What a pod writes into its file: longer than a block, different for each volume.
pub fn contents(volume: &str) -> String {
    (0..2000).map(|line| format!("{volume} {line}\n")).collect()
}

struct Work<'a> {
    client: Client,
    recorder: &'a Recorder<'a>,
}

/// Does it; every volume on its own first, then several at a time.
pub async fn run(driver: &DriverUnderTest, recorder: Recorder<'_>) -> History {
    let work = Work { client: Client::new(driver).await, recorder: &recorder };
    recorder.tick();
    std::thread::scope(|scope| {
        scope.spawn(|| recorder.tick_on());
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                // A step that fails is a panic: the ticking ends then too.
                let _done = recorder.done_when_dropped();
                work.alone().await;
                work.together().await;
            });
        });
    });
    recorder.tick();
    drop(work);
    recorder.history()
}

impl Work<'_> {
    async fn alone(&self) {
        self.create("thick-gone").await;
        self.delete("thick-gone").await;
        self.create("thick-raw").await;
        self.create("thick-1").await;
        self.stage("thick-1").await;
        self.write("thick-1").await;
        self.create("thin-1").await;
        self.stage("thin-1").await;
        self.write("thin-1").await;
        self.create("thin-raw").await;
        self.delete("thin-raw").await;
    }

    async fn together(&self) {
        let one = async {
            self.create("thick-2").await;
            self.stage("thick-2").await;
        };
        let two = async {
            self.create("thin-2").await;
            self.delete("thin-2").await;
        };
        let three = async {
            self.unstage("thin-1").await;
            self.delete("thin-1").await;
        };
        let four = async {
            self.delete("thick-raw").await;
            self.create("thick-raw-2").await;
        };
        tokio::join!(one, two, three, four);
    }

    async fn create(&self, volume: &'static str) {
        self.recorder.step(volume, Act::Create, async { self.client.create(volume).await.unwrap() }).await;
    }

    async fn stage(&self, volume: &'static str) {
        self.recorder.step(volume, Act::Stage, async { self.client.stage(volume).await.unwrap() }).await;
    }

    async fn unstage(&self, volume: &'static str) {
        self.recorder.step(volume, Act::Unstage, async { self.client.unstage(volume).await.unwrap() }).await;
    }

    async fn delete(&self, volume: &'static str) {
        self.recorder.step(volume, Act::Delete, async { self.client.delete(volume).await.unwrap() }).await;
    }

    /// The pod writes a file and has it synchronised.
    async fn write(&self, volume: &'static str) {
        let file = self.client.staging(volume).join("data");
        let work = async {
            std::fs::write(&file, contents(volume)).unwrap();
            shell(&format!("sync -f {}", file.display()));
        };
        self.recorder.step(volume, Act::Write, work).await;
    }
}
