//! From an error to what the caller reads.
//!
//! **Invariant.** The message of a status is the whole chain of reasons, each once, so that the event on a claim or a
//! pod says all there is to know.

use std::error::Error;

use tonic::{Code, Response, Status};

use crate::engine::FindError;
use crate::telemetry::chain;

use super::call;

/// A status whose message is the error and all its sources, joined by `: `.
#[must_use]
pub fn from(code: Code, error: &(dyn Error + 'static)) -> Status {
    Status::new(code, chain(error))
}

/// What a caller does about a volume that was not found: the same for every RPC.
#[must_use]
pub fn of_find(error: &FindError) -> Code {
    match error {
        FindError::Absent(_) => Code::NotFound,
        FindError::Lost { .. } => Code::DataLoss,
        FindError::OtherNode { .. } | FindError::Foreign { .. } => Code::FailedPrecondition,
        FindError::Tags { .. } => Code::Internal,
        FindError::Unreadable(_) => Code::Unavailable,
    }
}

/// Makes the answer of how a request ended, and notes it for the request's line in the log.
///
/// # Errors
/// The status of a request that failed.
pub fn answer<T>(volume: &str, result: Result<T, impl Into<Status>>) -> Result<Response<T>, Status> {
    call::note(|note| note.volume = (!volume.is_empty()).then(|| volume.to_owned()));
    result.map(Response::new).map_err(Into::into)
}

/// The refusal of a driver that could not read what it noted of weights and limits, and so sets none.
#[must_use]
pub fn no_shares() -> Status {
    Status::failed_precondition("the driver sets no weights and limits: its notes in io.json cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot stage {0}")]
    struct Outer(&'static str, #[source] Inner);

    #[derive(Debug, thiserror::Error)]
    enum Inner {
        #[error(transparent)]
        Through(std::io::Error),
    }

    #[test]
    fn the_message_is_the_whole_chain_each_reason_once() {
        let error = Outer("pvc-1", Inner::Through(std::io::Error::other("disk gone")));
        let status = from(Code::Internal, &error);
        assert_eq!((status.code(), status.message()), (Code::Internal, "cannot stage pvc-1: disk gone"));
        let answered = answer::<()>("n/pvc-1", Err(status)).unwrap_err();
        assert_eq!(answered.message(), "cannot stage pvc-1: disk gone");
    }
}
