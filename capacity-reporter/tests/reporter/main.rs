//! The whole reporter between an API server and a driver that both do what they are told.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod api;
mod cleaning;
mod driver;
mod driver_asks;
mod published;
mod scene;
mod troubles;
