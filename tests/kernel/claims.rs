//! Several claims of one pod: those that fit one by one and not together are refused before the first is made, and the
//! node publishes less for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use quarry_proto::csi::v1 as csi;
use quarry_proto::quarry::v1 as quarry;
use quarry_tests::in_vm::{VolumeGroup, lvm};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::capacity::{Watching, said, spare_disk};
use crate::scene::{MIB, Scene, THICK, filesystem, map, refused};

/// A client that knows which claims belong together, as the capacity-reporter does.
struct Reporter {
    pods: Arc<Mutex<BTreeMap<String, Vec<quarry::PodClaim>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reporter {
    /// Connects, and waits until it is asked.
    async fn connect(scene: &Scene) -> Self {
        let pods: Arc<Mutex<BTreeMap<String, Vec<quarry::PodClaim>>>> = Arc::default();
        let (answers, sent) = mpsc::channel(16);
        // The first message only says that the client is there.
        answers.send(quarry::ClaimsAnswer::default()).await.unwrap();
        let mut capacity = scene.csi.capacity.clone();
        let mut questions = capacity.claims(ReceiverStream::new(sent)).await.unwrap().into_inner();
        let known = Arc::clone(&pods);
        let task = tokio::spawn(async move {
            while let Ok(Some(question)) = questions.message().await {
                assert_eq!(question.namespace, "default");
                let others = known.lock().unwrap().get(&question.name).cloned().unwrap_or_default();
                let answer = quarry::ClaimsAnswer { id: question.id, others, error: String::new() };
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        let connected = || scene.driver.log().contains("a client tells of pods' other claims");
        for _ in 0..600 {
            if connected() {
                return Self { pods, task };
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the driver did not take up the client");
    }

    /// These claims belong to one pod: names and sizes.
    fn pod(&self, claims: &[(&str, i64)]) {
        for (name, _) in claims {
            let others = claims.iter().filter(|(other, _)| other != name).map(|(other, size)| quarry::PodClaim {
                namespace: "default".to_owned(),
                name: (*other).to_owned(),
                volume_name: format!("pvc-{other}"),
                parameters: map(THICK),
                requested_bytes: u64::try_from(*size).unwrap(),
                content: "ext4".to_owned(),
            });
            self.pods.lock().unwrap().insert((*name).to_owned(), others.collect());
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What csi-provisioner asks for a claim of that name.
fn of_claim(name: &str, size: i64) -> csi::CreateVolumeRequest {
    let mut request = filesystem(&format!("pvc-{name}"), size, THICK);
    request.parameters.extend(map(&[
        ("csi.storage.k8s.io/pvc/name", name),
        ("csi.storage.k8s.io/pvc/namespace", "default"),
        ("csi.storage.k8s.io/pv/name", &format!("pvc-{name}")),
    ]));
    request
}

#[tokio::test]
async fn claims_that_fit_one_by_one_and_not_together_are_refused_and_room_is_kept_for_a_while() {
    let spare = VolumeGroup::fresh("spare").unwrap();
    let disk = spare_disk(&spare);
    let scene = Scene::new("pod").await;
    let before = scene.capacity(THICK).await;
    let size = before / 3 * 2 / (4 * MIB) * (4 * MIB);
    let reporter = Reporter::connect(&scene).await;
    reporter.pod(&[("a", size), ("b", size - 4 * MIB)]);
    let mut watching = Watching::begin(&scene).await;

    let sum = (2 * size - 4 * MIB).to_string();
    let named = ["default/a", "default/b", "of one pod", &sum, "node-1", &before.to_string(), scene.group.name()];
    refused(scene.create(of_claim("a", size)).await, Code::ResourceExhausted, &named);
    assert_eq!(scene.volumes(), Vec::<String>::new());
    // Less than the largest of the claims, whichever of them is asked for: the scheduler looks elsewhere.
    let reasons = watching.until(&scene, THICK, |capacity| capacity == size - 4 * MIB).await;
    assert!(said(&reasons, "do not fit together"), "{reasons:?}");
    refused(scene.create(of_claim("b", size - 4 * MIB)).await, Code::ResourceExhausted, &named);
    // It is kept from the scheduler, not from another pod.
    let other = scene.create(of_claim("other", size)).await.unwrap();
    scene.delete(&other.volume_id).await.unwrap();
    // It ends by itself.
    let reasons = watching.until(&scene, THICK, |capacity| capacity == before).await;
    assert!(said(&reasons, "published again"), "{reasons:?}");

    // Refused again; it ends at once when there is room for all.
    refused(scene.create(of_claim("a", size)).await, Code::ResourceExhausted, &named);
    watching.until(&scene, THICK, |capacity| capacity < size).await;
    lvm("vgextend", &[scene.group.name(), &disk]).unwrap().success().unwrap();
    watching.until(&scene, THICK, |capacity| capacity > 2 * size).await;
    scene.create(of_claim("a", size)).await.unwrap();
    scene.create(of_claim("b", size - 4 * MIB)).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_has_a_volume_here_already_gets_what_fits() {
    let scene = Scene::new("pinned").await;
    let room = scene.capacity(THICK).await;
    // Made when nobody told of the others.
    scene.create(of_claim("a", 64 * MIB)).await.unwrap();
    let reporter = Reporter::connect(&scene).await;
    reporter.pod(&[("a", 64 * MIB), ("b", 64 * MIB), ("c", room)]);
    scene.create(of_claim("b", 64 * MIB)).await.unwrap();
    // What does not fit alone is refused as ever.
    refused(scene.create(of_claim("c", room)).await, Code::ResourceExhausted, &["no room for"]);
    assert_eq!(scene.capacity(THICK).await, room - 128 * MIB, "nothing is kept from the scheduler");
}

#[tokio::test]
async fn a_claim_of_which_nobody_tells_in_time_stands_alone() {
    let scene = Scene::new("alone").await;
    // A client that never answers.
    let (answers, sent) = mpsc::channel(1);
    answers.send(quarry::ClaimsAnswer::default()).await.unwrap();
    let mut questions = scene.csi.capacity.clone().claims(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let asked = tokio::spawn(async move { questions.message().await.unwrap().map(|question| question.name) });
    let request = of_claim("a", 64 * MIB);
    loop {
        scene.create(request.clone()).await.unwrap();
        if asked.is_finished() {
            break;
        }
        // The driver had not taken up the client yet.
        scene.delete("node-1/pvc-a").await.unwrap();
    }
    assert_eq!(asked.await.unwrap().as_deref(), Some("a"));
    assert!(scene.driver.log().contains("did not answer within 2 s"));
    // It is there: nobody is asked.
    scene.create(request).await.unwrap();
    drop(answers);
}
