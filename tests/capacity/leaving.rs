//! Nodes that lose the driver, and the end of an installation.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::{RUN, scenario};
use quarry_tests::cluster::capacity::{FRESH, objects, objects_of, published};
use quarry_tests::wait;

use crate::{CLASSES, NODES, OBJECTS};

#[test]
fn a_node_that_lost_the_driver_for_good_is_told_of_no_more() {
    scenario("lost", |bed| {
        let gone = NODES[2];
        let [first, second] = [NODES[0], NODES[1]];
        bed.kubectl.run(&format!("label node {first} {second} quarry-test=yes"))?;
        let outcome = (|| {
            // The pods of the node without the label end, and its kubelet forgets the driver.
            bed.release
                .install(&[first, second], &["nodeSelector.quarry-test=yes", "capacity.forgetNodesAfter=45s"])?;
            wait::until("end of the node's objects", RUN * 2, Duration::from_secs(1), || {
                Ok(objects(bed)?.len().eq(&(OBJECTS - CLASSES.len())).then_some(()))
            })?;
            for class in CLASSES {
                ensure!(objects_of(bed, class, gone)?.is_empty(), "{class} on {gone} is still told of");
                for node in [first, second] {
                    published(bed, class, node)?;
                }
            }
            Ok(())
        })();
        bed.release.install(&NODES, &[])?;
        bed.kubectl.run(&format!("label node {first} {second} quarry-test-"))?;
        outcome?;
        for class in CLASSES {
            published(bed, class, gone)?;
        }
        Ok(())
    });
}

#[test]
fn a_node_that_kubernetes_forgets_takes_its_objects_with_it() {
    scenario("forgotten", |bed| {
        let node = NODES[2];
        bed.kubectl.run(&format!("delete node {node}"))?;
        // The kubelet registers the node anew when it is started again; before that nothing of it may be left.
        let outcome = wait::until("end of the node's objects", FRESH * 3, Duration::from_secs(1), || {
            let left = CLASSES.map(|class| objects_of(bed, class, node).map(|o| o.len()));
            let left: usize = left.into_iter().sum::<Result<usize>>()?;
            Ok((left == 0).then_some(()))
        });
        bed.reboot(node)?;
        bed.release.wait_ready(&NODES)?;
        outcome?;
        for class in CLASSES {
            published(bed, class, node)?;
        }
        Ok(())
    });
}

#[test]
fn an_uninstalled_chart_leaves_no_object() {
    scenario("uninstalled", |bed| {
        for class in CLASSES {
            for node in NODES {
                published(bed, class, node)?;
            }
        }
        bed.release.uninstall()?;
        let left = objects(bed);
        bed.release.install(&NODES, &[])?;
        let left = left?;
        ensure!(left.is_empty(), "{} objects are left: {left:#?}", left.len());
        for class in CLASSES {
            for node in NODES {
                published(bed, class, node)?;
            }
        }
        Ok(())
    });
}
