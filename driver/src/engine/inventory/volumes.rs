//! The figures of volumes, kept from one scrape to the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::journal::Contents;
use crate::lvm::metadata::LvmUuid;
use crate::volume::io::Limits;
use crate::volume::tags::{LIMITS, WEIGHT};

use super::super::survey::Surveyed;
use super::super::{Engine, Reading};
use super::VolumeFigures;

/// How old the figures of volumes may be where nothing has changed: some change with time alone.
const AGAIN: Duration = Duration::from_secs(60);

/// The figures of volumes when they were last made, and what of. Making them takes some milliseconds for a thousand
/// volumes, and they are asked for at each scrape.
#[derive(Debug, Default)]
pub struct Figures(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    sources: Sources,
    when: Instant,
    volumes: Arc<Vec<(Option<Place>, VolumeFigures)>>,
}

/// The UUIDs of a volume's group and of the volume.
type Place = (LvmUuid, LvmUuid);

/// What figures of volumes are made of.
#[derive(Debug)]
struct Sources {
    /// Each group's reading, and whether it is settled.
    groups: Vec<(Arc<Reading>, bool)>,
    none_gone: bool,
    journal: Arc<Contents>,
}

impl Sources {
    fn of(engine: &Engine) -> Self {
        let groups = engine.groups.all().into_iter().map(|group| (group.known(), group.is_settled()));
        let none_gone = engine.groups.none_gone().is_ok();
        Self { groups: groups.collect(), none_gone, journal: engine.journaled() }
    }

    fn say_the_same(&self, other: &Self) -> bool {
        let same = |(before, settled): &(Arc<Reading>, bool), (now, settled_now): &(Arc<Reading>, bool)| {
            let equal = || before.is_complete() == now.is_complete() && before.state().group == now.state().group;
            settled == settled_now && (Arc::ptr_eq(before, now) || equal())
        };
        self.none_gone == other.none_gone
            && Arc::ptr_eq(&self.journal, &other.journal)
            && self.groups.len() == other.groups.len()
            && self.groups.iter().zip(&other.groups).all(|(before, now)| same(before, now))
    }

    fn figures(&self, volume: Surveyed) -> (Option<Place>, VolumeFigures) {
        let mut figures = VolumeFigures {
            name: volume.lv.to_string(),
            state: volume.state.name(),
            targets: volume.published.into_iter().map(|(target, _)| target).collect(),
            ..VolumeFigures::default()
        };
        let Some(record) = volume.record else { return (None, figures) };
        if let Some(claim) = record.claim {
            (figures.claim_namespace, figures.claim) = (claim.namespace, claim.name);
        }
        // What LVM shows, where it does.
        let mut place = None;
        if let Some((reading, _)) = self.groups.iter().find(|(reading, _)| reading.name() == record.vg) {
            let group = &reading.state().group;
            if let Some(found) = group.logical_volume(volume.lv.as_str()) {
                figures.pool = found.thin().map(|thin| thin.pool.clone()).unwrap_or_default();
                figures.weight = found.tag_value(WEIGHT).and_then(|weight| weight.parse().ok());
                figures.limits = found.tag_value(LIMITS).and_then(Limits::from_tag).unwrap_or_default();
                place = Some((group.uuid, found.uuid));
            }
        }
        let figures = VolumeFigures {
            class: record.class,
            group: record.vg,
            provisioning: record.provisioning,
            content: record.content,
            size: record.size,
            ..figures
        };
        (place, figures)
    }
}

impl Engine {
    /// Every volume, with what the kernel said of it last.
    pub(super) fn volumes_figures(&self) -> Vec<VolumeFigures> {
        let now = Sources::of(self);
        let mut remembered = self.figures.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            remembered.as_ref().filter(|known| known.sources.say_the_same(&now) && known.when.elapsed() < AGAIN);
        let volumes = match known {
            Some(known) => Arc::clone(&known.volumes),
            None => {
                let volumes = self.surveyed_now().into_iter().map(|volume| now.figures(volume));
                let volumes: Arc<Vec<(Option<Place>, VolumeFigures)>> = Arc::new(volumes.collect());
                *remembered = Some(Known { sources: now, when: Instant::now(), volumes: Arc::clone(&volumes) });
                volumes
            }
        };
        drop(remembered);
        let sampled = volumes.iter().map(|(place, figures)| {
            let sample = place.map(|(group, volume)| self.samples.of(group, volume)).unwrap_or_default();
            VolumeFigures { sample, ..figures.clone() }
        });
        sampled.collect()
    }
}
