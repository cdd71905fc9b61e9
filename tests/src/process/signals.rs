//! What a signal to the test bed does: it ends everything that was started, and then the test bed.

use std::sync::{Mutex, mpsc};
use std::thread;

use anyhow::{Context as _, Result};

use super::{kill_everything, lock};

type Hook = Box<dyn FnOnce() + Send>;
static HOOKS: Mutex<Vec<(u64, Hook)>> = Mutex::new(Vec::new());

/// Runs `hook` when a signal ends the test bed, after every process was killed: for what is not a process (a network
/// namespace, a scratch folder). Dropping the guard forgets the hook without running it.
#[must_use]
pub fn on_signal(hook: impl FnOnce() + Send + 'static) -> SignalHook {
    let mut hooks = lock(&HOOKS);
    let id = hooks.last().map_or(0, |(last, _)| last + 1);
    hooks.push((id, Box::new(hook)));
    SignalHook { id }
}

/// Keeps a hook of [`on_signal`].
#[derive(Debug)]
pub struct SignalHook {
    id: u64,
}

impl Drop for SignalHook {
    fn drop(&mut self) {
        lock(&HOOKS).retain(|(id, _)| *id != self.id);
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP kill everything that was started here, run the hooks of [`on_signal`] newest
/// first, and end the test bed with 128 + the signal's number.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn end_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot watch for signals")?;
    let (ready, installed) = mpsc::channel();
    thread::spawn(move || {
        let code = runtime.block_on(async {
            let handlers = || -> std::io::Result<_> {
                Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?))
            };
            match handlers() {
                Err(error) => {
                    ready.send(Err(error)).ok();
                    None
                }
                Ok((mut interrupt, mut terminate, mut hangup)) => {
                    ready.send(Ok(())).ok();
                    Some(tokio::select! {
                        _ = interrupt.recv() => 130,
                        _ = terminate.recv() => 143,
                        _ = hangup.recv() => 129,
                    })
                }
            }
        });
        if let Some(code) = code {
            eprintln!("testbed: told to end: stopping everything that was started");
            kill_everything();
            for (_, hook) in std::mem::take(&mut *lock(&HOOKS)).into_iter().rev() {
                hook();
            }
            std::process::exit(code);
        }
    });
    installed.recv().context("the thread that watches for signals is gone")?.context("cannot watch for signals")
}
