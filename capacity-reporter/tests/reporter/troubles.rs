//! Writes that fail, and API servers, drivers and reporters that go away.

use std::time::Duration;

use serde_json::json;

use crate::api::Fault;
use crate::scene::{GIB, OBJECTS, QUIET, Scene, name};

#[tokio::test]
async fn writes_that_fail_are_tried_again_with_what_is_true_by_then() {
    let scene = Scene::settled().await;
    for (number, fault) in [
        Fault::Status(500),
        Fault::Status(409),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(503),
        Fault::Later(1),
        Fault::Lost,
        Fault::Broken,
    ]
    .into_iter()
    .enumerate()
    {
        let size = i64::try_from(number).unwrap() + 10;
        scene.api.faults([fault, fault]);
        scene.driver.say("a", Ok((size * GIB, Some(size * GIB))));
        scene.until_told("a", &format!("{size}Gi")).await;
        scene.until("word that nothing is behind", || scene.metrics.ready()).await;
    }
    // The same where the object has to be made.
    scene.api.faults([Fault::Lost, Fault::Status(500), Fault::Later(1)]);
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.until_told("a", "18Gi").await;
    scene.still().await;
    assert_eq!(scene.api.all(OBJECTS).len(), 2);
    // A figure that was overtaken while its write failed is never written.
    scene.api.faults([Fault::Status(500); 3]);
    scene.driver.say("a", Ok((GIB, Some(GIB))));
    scene.until("failure", || !scene.metrics.ready()).await;
    scene.driver.say("a", Ok((30 * GIB, Some(30 * GIB))));
    scene.until_told("a", "30Gi").await;
}

#[tokio::test]
async fn one_object_that_cannot_be_written_does_not_hold_up_the_others() {
    let mut scene = Scene::set();
    scene.api.put(OBJECTS, "quarry", &name("a"), json!({"storageClassName": "a", "metadata": {"labels": {"x": "y"}}}));
    scene.begin();
    scene.until_told("b", "2Gi").await;
    let attempts = || scene.api.asked("create").into_iter().filter(|asked| asked.name == name("a")).count();
    // By then seconds pass from one attempt to the next.
    scene.until("sixth attempt", || attempts() >= 6).await;
    let mut alone = 0;
    for size in 3..8 {
        let before = attempts();
        scene.driver.say("b", Ok((size * GIB, Some(size * GIB))));
        scene.until_told("b", &format!("{size}Gi")).await;
        alone += usize::from(attempts() == before);
    }
    assert!(alone > 0, "b was written only together with an attempt at a");
    assert!(!scene.metrics.ready(), "nobody would notice");
    assert_eq!(scene.agreed(), ["b"]);
}

#[tokio::test]
async fn an_api_server_that_restarts_is_followed_from_where_it_is_then() {
    let scene = Scene::settled().await;
    scene.api.stop();
    scene.driver.say("a", Ok((6 * GIB, Some(6 * GIB))));
    tokio::time::sleep(Duration::from_millis(600)).await;
    // Meanwhile a class went and an object was deleted; whoever watched from before is told 410.
    scene.api.remove("storageclasses", "", "b");
    scene.api.remove(OBJECTS, "quarry", &name("a"));
    scene.api.start();
    scene.until_told("a", "6Gi").await;
    scene.until("end of b", || scene.objects("b").is_empty()).await;
}

#[tokio::test]
async fn while_the_driver_is_away_objects_stay_and_when_it_cannot_tell_they_say_nothing_is_left() {
    let mut scene = Scene::settled().await;
    let before = scene.api.all(OBJECTS);
    scene.driver.end().await;
    tokio::time::sleep(QUIET * 2).await;
    assert_eq!(scene.api.all(OBJECTS), before);
    assert!(!scene.metrics.ready());
    // What needs no driver is done without one.
    scene.api.remove("storageclasses", "", "b");
    scene.until("end of b", || scene.objects("b").is_empty()).await;
    scene.still().await;
    assert_eq!(scene.told("a").as_deref(), Some("4Gi"), "nobody knows better");
    scene.driver.whisper("a", Ok((3 * GIB, Some(3 * GIB))));
    scene.driver.begin();
    scene.until_told("a", "3Gi").await;
    for code in [tonic::Code::Unavailable, tonic::Code::InvalidArgument, tonic::Code::Internal] {
        scene.driver.say("a", Err(code));
        scene.until_told("a", "0").await;
        assert_eq!(scene.objects("a")[0]["capacity"], "0");
        // Found out without a word of the driver but for what is wrong with the class itself.
        scene.driver.whisper("a", Ok((3 * GIB, Some(3 * GIB))));
        if code == tonic::Code::InvalidArgument {
            scene.driver.signal();
        }
        scene.until_told("a", "3Gi").await;
    }
}

#[tokio::test]
async fn a_reporter_that_is_killed_and_started_again_writes_nothing_that_is_there() {
    let mut scene = Scene::settled().await;
    let (before, writes) = (scene.api.all(OBJECTS), scene.api.writes());
    scene.kill().await;
    scene.begin();
    scene.until("answer of the driver", || scene.metrics.ready()).await;
    scene.still().await;
    assert_eq!(scene.api.all(OBJECTS), before);
    assert_eq!(scene.api.writes(), writes);
}

#[tokio::test]
async fn watches_that_began_together_do_not_end_together() {
    let mut lengths = Vec::new();
    for _ in 0..4 {
        lengths.extend(Scene::settled().await.api.watch_lengths());
    }
    assert!(lengths.len() >= 12, "{lengths:?}");
    assert!(lengths.iter().any(|length| *length != lengths[0]), "all last {} s", lengths[0]);
    assert!(lengths.iter().all(|length| (200..=290).contains(length)), "{lengths:?}");
}
