//! Real reporters of simulated nodes against real API servers: what they cost, by the number of nodes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube::Client;
use quarry_tests::cluster::nodeless::Access;
use quarry_tests::cluster::release::Release;
use quarry_tests::progress::Progress;
use serde::Serialize;

use crate::CLASSES;
use crate::herd::{Counts, Herd, Member, Order};
use crate::results::{Percentiles, per};
use crate::scrape::{Difference, Scrape};
use crate::shipped::{Memory, Shipped};
use crate::world::{self, Observer, memory_kib};

/// Nodes whose reporter runs as it is shipped; the last of them as the janitor.
const SHIPPED: usize = 5;
/// Reporters of one process at most: a process may have 20,000 open files on many machines, and each has up to nine.
const HERD: usize = 1250;
/// So many reporters run at most, or so many more of the next nodes where that is reached: two cores do not carry more
/// beside the API servers. Of other nodes there are the objects, as their reporters leave them.
const RUNNING: usize = 1000;
const MORE: usize = 100;
/// How long nothing changes while requests are counted.
const QUIET: Duration = Duration::from_secs(75);
/// The same at the middle size: longer than any watch lasts.
const LONG_QUIET: Duration = Duration::from_secs(300);
/// Changes of one node.
const CHANGES: usize = 30;
/// How long all nodes' changes may take to be published.
const ALL: Duration = Duration::from_secs(300);
const GIB: i64 = 1 << 30;
/// Where the sample's processes serve their metrics.
const PORT: u16 = 9900;

/// What was measured with so many nodes.
#[derive(Debug, Serialize)]
pub struct Size {
    /// How many.
    pub nodes: usize,
    /// Reporters that run.
    pub running: usize,
    /// Capacity objects, as the API server lists them.
    pub objects: usize,
    /// Reporters started to get to this size, and how long until the last had published.
    pub started: usize,
    /// In seconds.
    pub start_s: f64,
    /// Of one of these: requests besides watches, the lists with which these begin included.
    pub start_requests: f64,
    /// Milliseconds of the API servers' processors for one of these.
    pub start_cpu_ms: f64,
    /// Requests of theirs that failed.
    pub start_failed: u64,
    /// Nothing changes.
    pub idle: Idle,
    /// One node's room changes.
    pub one: Changes,
    /// Every node's room changes at the same moment.
    pub all: Changes,
    /// Of reporters as they are shipped, the largest.
    pub reporter: Kib,
    /// The one that cleans up, too.
    pub janitor: Janitor,
    /// All API servers, resident, MiB.
    pub api_servers_mib: u64,
    /// etcd, resident, MiB.
    pub etcd_mib: u64,
}

/// While nothing changes.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// How long was looked.
    pub seconds: f64,
    /// Requests of the reporters, besides watches and the janitor's.
    pub requests: u64,
    /// What API servers counted for these resources, by verb, their own requests included.
    pub counted: std::collections::BTreeMap<String, f64>,
    /// Watches that go on.
    pub watches: f64,
    /// Watches begun anew in a second.
    pub watches_per_s: f64,
    /// Events sent to watchers in a second: bookmarks, which tell a watch how far it is.
    pub events_per_s: f64,
    /// Their bytes in a second.
    pub bytes_per_s: f64,
    /// Events of capacity objects alone, and their bytes.
    capacity_per_s: (f64, f64),
    /// Seconds of the API servers' processors in a second.
    pub cpu: f64,
}

/// What changes cost.
#[derive(Debug, Serialize)]
pub struct Changes {
    /// From the driver's word to the scheduler's watch, milliseconds.
    pub delay: Percentiles,
    /// Until the last object said so, seconds.
    pub seconds: f64,
    /// Of one node's change: requests besides watches.
    pub requests: f64,
    /// Requests that failed, by verb and how.
    pub failed: Counts,
    /// Of one node's change: events sent to watchers, without the benchmark's own.
    pub events: f64,
    /// Their bytes, of one event.
    pub event_bytes: f64,
    /// Milliseconds of the API servers' processors for one node's change.
    pub cpu_ms: f64,
}

/// Memory in KiB.
#[derive(Debug, Serialize, Clone, Copy)]
pub struct Kib {
    /// Resident.
    pub resident: u64,
    /// The most it was.
    pub peak: u64,
}

/// The reporter that cleans up.
#[derive(Debug, Serialize, Clone, Copy)]
pub struct Janitor {
    /// Its memory.
    pub memory: Kib,
    /// Requests of one look, which comes every five minutes.
    pub requests: f64,
}

/// The simulation while it runs.
struct Simulation {
    access: Access,
    reporter: PathBuf,
    progress: Progress,
    admin: Client,
    servers: Vec<Client>,
    herds: Vec<Herd>,
    /// How many reporters each herd has.
    sizes: Vec<usize>,
    shipped: Vec<Member>,
    /// All nodes.
    names: Vec<String>,
    /// Those of them whose reporter runs in a herd.
    live: Vec<String>,
    /// What the drivers say now; each change says one GiB more.
    room: i64,
}

/// Measures with so many nodes, one size after the other; what is there stays.
///
/// # Errors
/// What kept it from measuring.
pub async fn run(access: Access, reporter: PathBuf, sizes: &[usize]) -> Result<Vec<Size>> {
    let progress = Progress::default();
    let admin = world::admin(&access, 0).await?;
    let mut servers = Vec::new();
    for index in 0..access.servers.len() {
        servers.push(world::admin(&access, index).await?);
    }
    install(&access, &progress)?;
    let mut simulation = Simulation {
        access,
        reporter,
        progress,
        admin,
        servers,
        herds: Vec::new(),
        sizes: Vec::new(),
        shipped: Vec::new(),
        names: Vec::new(),
        live: Vec::new(),
        room: 100 * GIB,
    };
    let mut results = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let quiet = if index == sizes.len() / 2 && sizes.len() > 1 { LONG_QUIET } else { QUIET };
        results.push(simulation.measure(*size, quiet).await.with_context(|| format!("with {size} nodes"))?);
    }
    Ok(results)
}

/// Installs the chart: account, rights, policy, lease, and as many classes as there are to be. Nobody makes pods of it.
fn install(access: &Access, progress: &Progress) -> Result<()> {
    let mut values = Vec::new();
    for (index, class) in CLASSES.iter().enumerate() {
        values.push(format!("storageClasses[{index}].name={class}"));
        values.push(format!("storageClasses[{index}].parameters.deviceClass={class}"));
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    progress.step("install the chart", || Release::of(&access.folder).apply(&values))
}

impl Simulation {
    async fn measure(&mut self, size: usize, quiet: Duration) -> Result<Size> {
        let before = self.names.len();
        ensure!(size > before.max(SHIPPED), "{size} nodes are not more than there are");
        self.progress.say(&format!("{size} nodes: make {} Node objects and tokens", size - before));
        let mut members = world::nodes(&self.admin, &self.access, before..size, self.room).await?;
        self.names.extend(members.iter().map(|member| member.node.clone()));
        if self.shipped.is_empty() {
            self.shipped = members.drain(..SHIPPED).collect();
        }
        world::give_lease(&self.admin, &self.janitor().node).await?;

        if self.live.len() + members.len() > RUNNING {
            let others = members.split_off(MORE.min(members.len()));
            self.progress.say(&format!("{size} nodes: make the objects of {} of them", others.len()));
            world::publish(&self.admin, &others).await?;
        }
        self.live.extend(members.iter().map(|member| member.node.clone()));
        self.progress.say(&format!("{size} nodes: start {} reporters", members.len()));
        let started = members.len();
        let (scrape, begin, counts) = (self.scrape().await?, Instant::now(), self.counts().await?);
        self.start(members).await?;
        let start_s = begin.elapsed().as_secs_f64();
        let start = self.scrape().await?.since(&scrape);
        let start_counts = minus(&self.counts().await?, &counts);

        let mut sample = Vec::new();
        for (index, member) in self.shipped[..SHIPPED - 1].iter().enumerate() {
            let member = Member { room: self.room, ..member.clone() };
            let port = PORT + u16::try_from(index)?;
            sample.push(Shipped::start(&self.access, &self.reporter, &member, port, &[]).await?);
        }
        // The janitor's node has objects from here on, too.
        let janitor = self.start_janitor().await?;
        janitor.kill().await?;

        let idle = self.idle(quiet, &sample).await?;
        let observer = Observer::start(self.servers.last().context("no API server")?.clone(), world::node_of).await?;
        let one = self.one(&observer, &idle).await?;
        let all = self.all(&observer, &sample, &idle).await?;
        drop(observer);
        let reporter = largest(sample.iter().map(Shipped::memory))?;
        for shipped in sample {
            shipped.kill().await?;
        }
        let janitor = self.look_as_janitor().await?;
        let (mut api_servers, mut etcd) = (0, 0);
        for (name, pid) in &self.access.processes {
            let sum = if name == "etcd" { &mut etcd } else { &mut api_servers };
            *sum += memory_kib(*pid, "VmRSS")? / 1024;
        }
        let size = Size {
            nodes: size,
            running: self.live.len() + SHIPPED - 1,
            objects: world::objects(&self.admin).await?,
            started,
            start_s,
            start_requests: per(asked(&start), started),
            start_cpu_ms: per(start.cpu * 1000.0, started),
            start_failed: failures(&start_counts),
            idle,
            one,
            all,
            reporter,
            janitor,
            api_servers_mib: api_servers,
            etcd_mib: etcd,
        };
        self.progress.say(&serde_json::to_string(&size)?);
        Ok(size)
    }

    fn janitor(&self) -> &Member {
        &self.shipped[SHIPPED - 1]
    }

    async fn start_janitor(&self) -> Result<Shipped> {
        let member = Member { room: self.room, ..self.janitor().clone() };
        let port = PORT + u16::try_from(SHIPPED)?;
        // Looks every ten seconds instead of every five minutes.
        Shipped::start(&self.access, &self.reporter, &member, port, &["--forget-nodes-after=30s"]).await
    }

    /// The new ones in herds of about the same size.
    async fn start(&mut self, members: Vec<Member>) -> Result<()> {
        while self.herds.len() < self.live.len().div_ceil(HERD) {
            let index = self.herds.len();
            self.herds.push(Herd::start(&self.access.folder, index, &self.access.authority).await?);
        }
        self.sizes.resize(self.herds.len(), 0);
        let mut parts: Vec<Vec<Member>> = self.herds.iter().map(|_| Vec::new()).collect();
        for member in members {
            let smallest = (0..self.sizes.len()).min_by_key(|herd| self.sizes[*herd]).context("no herd")?;
            self.sizes[smallest] += 1;
            parts[smallest].push(member);
        }
        let orders =
            self.herds.iter_mut().zip(parts).map(|(herd, part)| async move { herd.order(&Order::Start(part)).await });
        try_join_all(orders).await.map(drop)
    }

    async fn scrape(&self) -> Result<Scrape> {
        Scrape::of(&self.servers).await
    }

    async fn order(&mut self, order: &Order) -> Result<Counts> {
        let mut all = Counts::new();
        for counts in try_join_all(self.herds.iter_mut().map(|herd| herd.order(order))).await? {
            add(&mut all, counts);
        }
        Ok(all)
    }

    async fn counts(&mut self) -> Result<Counts> {
        self.order(&Order::Count).await
    }

    async fn all_counts(&mut self, sample: &[Shipped]) -> Result<Counts> {
        let mut counts = self.counts().await?;
        for shipped in sample {
            add(&mut counts, shipped.counts().await?);
        }
        Ok(counts)
    }

    async fn idle(&mut self, quiet: Duration, sample: &[Shipped]) -> Result<Idle> {
        self.progress.say(&format!("nothing changes for {} s", quiet.as_secs()));
        // What follows from the start has come by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (before, counts) = (self.scrape().await?, self.all_counts(sample).await?);
        tokio::time::sleep(quiet).await;
        let (after, now) = (self.scrape().await?, self.all_counts(sample).await?);
        let Difference { seconds, requests: counted, watches: begun, events, bytes, all_events, all_bytes, cpu } =
            after.since(&before);
        Ok(Idle {
            seconds,
            requests: requests(&minus(&now, &counts)) as u64,
            counted,
            watches: after.watches(),
            watches_per_s: begun / seconds,
            events_per_s: all_events / seconds,
            bytes_per_s: all_bytes / seconds,
            capacity_per_s: (events / seconds, bytes / seconds),
            cpu: cpu / seconds,
        })
    }

    /// One node after the other says something else.
    async fn one(&mut self, observer: &Observer, idle: &Idle) -> Result<Changes> {
        self.progress.say(&format!("{CHANGES} times one node changes"));
        let (before, counts) = (self.scrape().await?, self.counts().await?);
        let (mut delays, mut seconds) = (Vec::new(), 0.0);
        for index in 0..CHANGES {
            let node = &self.live[index * self.live.len() / CHANGES];
            let nodes = vec![node.clone()];
            let bytes = self.room + (1 + i64::try_from(index)?) * GIB;
            let since = Instant::now();
            self.order(&Order::Say { node: nodes.first().cloned(), bytes }).await?;
            let told = observer.told(&nodes, &figure(bytes), since, Duration::from_secs(30)).await?;
            let last = told.iter().max().copied().unwrap_or_default();
            delays.extend(told);
            seconds += last.as_secs_f64();
            // Longer than the reporter's own pause between two rounds.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let difference = self.scrape().await?.since(&before);
        let counts = minus(&self.counts().await?, &counts);
        self.room += (1 + i64::try_from(CHANGES)?) * GIB;
        Ok(changes(&delays, seconds / CHANGES as f64, &difference, &counts, (CHANGES, idle)))
    }

    /// All say something else at the same moment.
    async fn all(&mut self, observer: &Observer, sample: &[Shipped], idle: &Idle) -> Result<Changes> {
        self.progress.say("all nodes whose reporter runs change at once");
        let (before, counts) = (self.scrape().await?, self.all_counts(sample).await?);
        self.room += GIB;
        let bytes = self.room;
        let shipped = self.shipped[..sample.len()].iter().map(|member| member.node.clone());
        let nodes: Vec<String> = self.live.iter().cloned().chain(shipped).collect();
        let since = Instant::now();
        for shipped in sample {
            shipped.say(bytes);
        }
        self.order(&Order::Say { node: None, bytes }).await?;
        let delays = observer.told(&nodes, &figure(bytes), since, ALL).await?;
        let last = delays.iter().max().copied().unwrap_or_default();
        // Watchers that are behind get their events, too.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let difference = self.scrape().await?.since(&before);
        let counts = minus(&self.all_counts(sample).await?, &counts);
        Ok(changes(&delays, last.as_secs_f64(), &difference, &counts, (nodes.len(), idle)))
    }

    /// Has a reporter as it is shipped clean up, of all nodes, several times.
    async fn look_as_janitor(&self) -> Result<Janitor> {
        self.progress.say("a janitor looks at all nodes");
        let janitor = self.start_janitor().await?;
        let before = janitor.counts().await?;
        let sum = |counts: &Counts, verb: &str| -> u64 {
            counts.iter().filter(|(what, _)| what.starts_with(verb)).map(|(_, count)| count).sum()
        };
        let mut now = before.clone();
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            now = janitor.counts().await?;
            if sum(&now, "lease ") >= sum(&before, "lease ") + 3 {
                break;
            }
        }
        // The last look ends.
        tokio::time::sleep(Duration::from_secs(3)).await;
        now = janitor.counts().await.unwrap_or(now);
        let looks = sum(&now, "lease ok");
        ensure!(looks > 0, "the janitor did not look: {now:?}");
        let memory = kib(janitor.memory()?);
        janitor.kill().await?;
        Ok(Janitor { memory, requests: per((sum(&now, "list ok") + looks) as f64, usize::try_from(looks)?) })
    }
}

/// Sums up what so many changes cost, less what goes on when nothing changes.
fn changes(
    delays: &[Duration],
    seconds: f64,
    difference: &Difference,
    counts: &Counts,
    (of, idle): (usize, &Idle),
) -> Changes {
    // The benchmark's own watch has each event once.
    let events = (difference.events - idle.capacity_per_s.0 * difference.seconds).max(0.0);
    let bytes = (difference.bytes - idle.capacity_per_s.1 * difference.seconds).max(0.0);
    Changes {
        delay: Percentiles::of(delays),
        seconds,
        requests: per(requests(counts), of),
        failed: counts.iter().filter(|(what, _)| !what.ends_with(" ok")).map(|(w, c)| (w.clone(), *c)).collect(),
        events: per(events - delays.len() as f64, of).max(0.0),
        event_bytes: bytes / events.max(1.0),
        cpu_ms: per(difference.cpu * 1000.0, of),
    }
}

/// As the objects say it.
fn figure(bytes: i64) -> String {
    format!("{}Gi", bytes / GIB)
}

fn add(all: &mut Counts, more: Counts) {
    for (what, count) in more {
        *all.entry(what).or_default() += count;
    }
}

fn minus(now: &Counts, before: &Counts) -> Counts {
    let difference = |(what, count): (&String, &u64)| {
        (what.clone(), count.saturating_sub(before.get(what).copied().unwrap_or_default()))
    };
    now.iter().map(difference).filter(|(_, count)| *count > 0).collect()
}

fn requests(counts: &Counts) -> f64 {
    counts.values().sum::<u64>() as f64
}

/// What was asked of the API servers besides watches, without what they ask for their own leases.
fn asked(difference: &Difference) -> f64 {
    let own = ["GET leases", "PUT leases", "POST leases"];
    difference.requests.iter().filter(|(what, _)| !own.contains(&what.as_str())).map(|(_, count)| count).sum()
}

fn failures(counts: &Counts) -> u64 {
    counts.iter().filter(|(what, _)| !what.ends_with(" ok")).map(|(_, count)| count).sum()
}

fn kib(memory: Memory) -> Kib {
    Kib { resident: memory.resident, peak: memory.peak }
}

fn largest(all: impl Iterator<Item = Result<Memory>>) -> Result<Kib> {
    let all = all.collect::<Result<Vec<_>>>()?;
    let most = |what: fn(&Memory) -> u64| all.iter().map(what).max().context("no sample");
    Ok(Kib { resident: most(|memory| memory.resident)?, peak: most(|memory| memory.peak)? })
}
