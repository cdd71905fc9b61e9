//! A pod with two claims that fit singly and not together.

use anyhow::{Result, ensure};
use quarry_tests::cluster::bed::scenario;
use quarry_tests::cluster::capacity::settled;
use quarry_tests::cluster::kubectl::{items, text};
use quarry_tests::cluster::objects::{Pod, claim};

use crate::NODES;

const CLASS: &str = "quarry-thin";
const MIB: u64 = 1 << 20;

#[test]
fn a_pod_with_two_claims_ends_where_both_fit() {
    scenario("pair", |bed| -> Result<()> {
        let [large, middle, small] = NODES;
        let room = |node: &str| settled(bed, CLASS, node).map(|room| room.largest / MIB);
        let (most, some, least) = (room(large)?, room(middle)?, room(small)?);
        // More than half of what the second node has; one alone fits there and on the third too.
        let size = some * 6 / 10;
        ensure!(size < some && 2 * size > some && 2 * size < most && 2 * size > least, "{most} {some} {least} MiB");
        let size = format!("{size}Mi");
        bed.apply(&[claim("one", CLASS, &size), claim("two", CLASS, &size)])?;
        bed.apply(&[Pod::new("both").mounts("one").mounts("two").preferring(middle).manifest()])?;
        let node = bed.running("both")?;
        ensure!(node == large, "both claims fit on {large} only, the pod runs on {node}");
        // It was tried where it would rather be, and refused before anything was made.
        let refused = bed.kubectl.get("events --field-selector reason=ProvisioningFailed")?;
        let said: Vec<&str> = items(&refused).iter().map(|event| text(event, "/message")).collect();
        ensure!(said.iter().any(|message| message.contains("of one pod need")), "nothing was refused: {said:?}");
        for claim in ["one", "two"] {
            ensure!(bed.volume(claim)?.node == large, "{claim} is elsewhere");
        }
        Ok(())
    });
}
