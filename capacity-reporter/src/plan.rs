//! What has to change so that each StorageClass has exactly one right object on this node. Pure.
//!
//! **Invariant.** Only objects that a reporter of this driver keeps are changed or deleted. A second object for a class
//! is deleted only when the right one is there, so that the node is at no moment without.

use std::collections::BTreeMap;

use crate::identity::Identity;
use crate::object::{Figures, Object, Owner};

/// What a class's object should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// These figures.
    Say(Figures),
    /// What it says already, if there is one: nobody knows better now.
    Keep,
}

/// Why a change is made; the order in which changes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Less room than was told: each moment longer may cost a failed volume.
    Drop,
    /// None was told.
    Make,
    /// More room than was told.
    Raise,
    /// The figures are right, a label or the owner is not.
    Repair,
    /// No longer wanted.
    Delete,
}

/// One change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Why.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: String,
    /// What is done.
    pub action: Action,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is made anew.
    Create(Figures),
    /// This very object is changed.
    Update {
        /// Which one.
        uid: String,
        /// To what.
        figures: Figures,
    },
    /// This very object is deleted.
    Delete {
        /// Which one.
        uid: String,
    },
}

/// The changes that lead from what is there to what is wished for, the most urgent first. Some follow only when others
/// have been made: an empty plan, not the end of a first one, says that everything is right.
#[must_use]
pub fn plan(identity: &Identity, owner: &Owner, wishes: &BTreeMap<String, Wish>, objects: &[Object]) -> Vec<Change> {
    let ours: Vec<&Object> = objects.iter().filter(|object| object.is_ours(&identity.driver)).collect();
    let mut changes = Vec::new();
    // The classes whose right object is there.
    let mut settled = Vec::new();
    for (class, wish) in wishes {
        let name = identity.object_name(class);
        let own = ours.iter().find(|object| object.namespace == identity.namespace && object.name == name);
        let change = |kind, action| Change {
            kind,
            namespace: identity.namespace.clone(),
            name: name.clone(),
            class: class.clone(),
            action,
        };
        match (own, wish) {
            // Whoever holds it back has to let go before it can be made anew.
            (Some(object), _) if object.leaving => {}
            // Neither can be changed.
            (Some(object), _) if !object.is_of(identity) || object.class != *class => {
                changes.push(change(Kind::Drop, Action::Delete { uid: object.uid.clone() }));
            }
            (Some(object), Wish::Say(figures)) if !object.says(*figures, identity, owner) => {
                settled.push(class);
                let action = Action::Update { uid: object.uid.clone(), figures: *figures };
                changes.push(change(kind(object, *figures), action));
            }
            (Some(_), _) => settled.push(class),
            (None, Wish::Say(figures)) => changes.push(change(Kind::Make, Action::Create(*figures))),
            (None, Wish::Keep) => {}
        }
    }
    for object in ours {
        let right = object.namespace == identity.namespace && object.name == identity.object_name(&object.class);
        let wanted = wishes.contains_key(&object.class);
        // One that stands in for the right one stays until that is there; what speaks of another node stands in for none.
        let stands_in = wanted && object.is_of(identity) && !settled.contains(&&object.class);
        if (wanted && right) || stands_in || object.leaving {
            continue;
        }
        if changes.iter().any(|change| change.namespace == object.namespace && change.name == object.name) {
            continue;
        }
        changes.push(Change {
            kind: Kind::Delete,
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            class: object.class.clone(),
            action: Action::Delete { uid: object.uid.clone() },
        });
    }
    changes.sort_by_key(|change| change.kind);
    changes
}

fn kind(object: &Object, figures: Figures) -> Kind {
    // The scheduler's limit is the largest volume; where that is missing, the capacity.
    match object.largest.or(object.capacity) {
        None => Kind::Make,
        Some(told) if told > figures.largest => Kind::Drop,
        Some(told) if told < figures.largest => Kind::Raise,
        Some(_) => match object.capacity {
            Some(told) if told > figures.capacity => Kind::Drop,
            Some(told) if told == figures.capacity && object.largest.is_some() => Kind::Repair,
            _ => Kind::Raise,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::MANAGED_BY_LABEL;
    use crate::identity::tests::here;
    use crate::object::manifest;
    use proptest::prelude::*;

    fn owner() -> Owner {
        Owner { name: "node-1".to_owned(), uid: "node-uid".to_owned() }
    }

    fn figures(largest: u64) -> Figures {
        Figures { capacity: largest * 2, largest }
    }

    fn object(class: &str, largest: u64) -> Object {
        let value = manifest(&here(), &owner(), class, figures(largest), Some("uid-0"));
        Object::of(serde_json::from_value(value).unwrap())
    }

    /// What the API server makes of a change; it refuses what does not match the object.
    fn carry_out(change: &Change, objects: &mut Vec<Object>, next: &mut u32) {
        *next += 1;
        let at = objects.iter().position(|o| o.namespace == change.namespace && o.name == change.name);
        let made = |figures: Figures, uid: &str| {
            let value = manifest(&here(), &owner(), &change.class, figures, Some(uid));
            Object::of(serde_json::from_value(value).unwrap())
        };
        match (&change.action, at) {
            (Action::Create(figures), None) => objects.push(made(*figures, &format!("uid-{next}"))),
            (Action::Update { uid, figures }, Some(at)) if objects[at].uid == *uid => {
                let (class, topology) = (objects[at].class.clone(), objects[at].topology.clone());
                let after = made(*figures, uid);
                assert_eq!((&after.class, &after.topology), (&class, &topology), "an update of what cannot change");
                objects[at] = after;
            }
            (Action::Delete { uid }, Some(at)) if objects[at].uid == *uid => drop(objects.remove(at)),
            // A name that somebody else has taken.
            (Action::Create(_), Some(at)) => assert!(!objects[at].is_ours(&here().driver)),
            (action, at) => panic!("{action:?} of {at:?}"),
        }
    }

    #[test]
    fn nothing_is_changed_where_nothing_has_changed() {
        let wishes = BTreeMap::from([("a".to_owned(), Wish::Say(figures(5))), ("b".to_owned(), Wish::Keep)]);
        assert_eq!(plan(&here(), &owner(), &wishes, &[object("a", 5), object("b", 7)]), []);
        assert_eq!(plan(&here(), &owner(), &wishes, &[object("a", 5)]), [], "nobody knows what to say of b");
    }

    #[test]
    fn drops_come_first_and_deletions_last() {
        let say = |class: &str, largest| (class.to_owned(), Wish::Say(figures(largest)));
        let wishes = BTreeMap::from([say("new", 3), say("raised", 9), say("dropped", 1), say("owner", 5)]);
        let mut stale = object("owner", 5);
        stale.owner = Some(Owner { uid: "of an earlier node".to_owned(), ..owner() });
        let there = [object("raised", 8), object("gone", 4), object("dropped", 2), stale];
        let kinds: Vec<(Kind, String)> =
            plan(&here(), &owner(), &wishes, &there).into_iter().map(|c| (c.kind, c.class)).collect();
        let expected = [
            (Kind::Drop, "dropped"),
            (Kind::Make, "new"),
            (Kind::Raise, "raised"),
            (Kind::Repair, "owner"),
            (Kind::Delete, "gone"),
        ];
        assert_eq!(kinds, expected.map(|(kind, class)| (kind, class.to_owned())));
    }

    #[test]
    fn a_second_object_stays_until_the_right_one_is_there() {
        let wishes = BTreeMap::from([("a".to_owned(), Wish::Say(figures(5)))]);
        let second = Object { name: "csisc-abcde".to_owned(), uid: "second".to_owned(), ..object("a", 9) };
        let elsewhere = Object { namespace: "old".to_owned(), uid: "third".to_owned(), ..object("a", 9) };
        let changes = plan(&here(), &owner(), &wishes, &[second.clone(), elsewhere.clone()]);
        assert_eq!(changes.iter().map(|c| c.kind).collect::<Vec<_>>(), [Kind::Make]);
        let changes = plan(&here(), &owner(), &wishes, &[second, elsewhere, object("a", 5)]);
        let uids: Vec<_> = changes.into_iter().map(|c| c.action).collect();
        let delete = |uid: &str| Action::Delete { uid: uid.to_owned() };
        assert_eq!(uids, [delete("second"), delete("third")]);
    }

    /// Any object that may be around: ours or not, of this node or another, right or wrong in any part.
    fn any_object() -> impl Strategy<Value = Object> {
        let class = prop_oneof![Just("a"), Just("b"), Just("c")];
        (class, 0_u64..4, 0_u8..6, 0_u8..4, any::<[bool; 5]>(), 0_u32..1_000_000).prop_map(
            |(class, largest, name, namespace, odd, number)| {
                let mut object = object(class, largest);
                object.uid = format!("any-{number}");
                match name {
                    0 => object.name = format!("csisc-{number}"),
                    // Named like another class's.
                    1 => object.name = here().object_name("b"),
                    _ => {}
                }
                if namespace == 0 {
                    object.namespace = "elsewhere".to_owned();
                }
                if odd[0] {
                    object.labels.insert(MANAGED_BY_LABEL.to_owned(), "somebody".to_owned());
                }
                if odd[1] {
                    object.topology = Some(BTreeMap::from([(here().segment.0, "node-2".to_owned())]));
                }
                if odd[2] {
                    object.owner = None;
                }
                if odd[3] {
                    object.largest = None;
                }
                if odd[4] {
                    object.labels.remove(crate::identity::APP_LABEL);
                }
                object
            },
        )
    }

    fn any_wishes() -> impl Strategy<Value = BTreeMap<String, Wish>> {
        let wish = prop_oneof![3 => (0_u64..4).prop_map(|largest| Wish::Say(figures(largest))), 1 => Just(Wish::Keep)];
        proptest::collection::btree_map(
            prop_oneof![Just("a"), Just("b"), Just("d")].prop_map(str::to_owned),
            wish,
            0..4,
        )
    }

    proptest! {
        /// Whatever is there and whatever is wished for, one after the other.
        #[test]
        fn every_pair_ends_with_exactly_one_right_object(
            start in proptest::collection::vec(any_object(), 0..8),
            all_wishes in proptest::collection::vec(any_wishes(), 1..5),
        ) {
            let mut objects: Vec<Object> = Vec::new();
            for object in start {
                if !objects.iter().any(|o| o.namespace == object.namespace && o.name == object.name) {
                    objects.push(object);
                }
            }
            let foreign: Vec<Object> = objects.iter().filter(|o| !o.is_ours(&here().driver)).cloned().collect();
            let taken = |class: &str| {
                foreign.iter().any(|o| o.namespace == here().namespace && o.name == here().object_name(class))
            };
            let mut next = 0;
            for wishes in all_wishes {
                // One that sits on another class's name cannot stay.
                let sits = |o: &Object| wishes.keys().any(|class| *class != o.class && o.name == here().object_name(class));
                let told = |objects: &[Object], class: &str| {
                    objects.iter().any(|o| o.is_ours(&here().driver) && o.class == class && o.is_of(&here()) && !sits(o))
                };
                let before: Vec<&String> = wishes.keys().filter(|class| told(&objects, class)).collect();
                for _ in 0..3 {
                    for change in plan(&here(), &owner(), &wishes, &objects) {
                        carry_out(&change, &mut objects, &mut next);
                        for class in &before {
                            prop_assert!(told(&objects, class), "{} is without after {:?}", class, change);
                        }
                    }
                }
                let rest = plan(&here(), &owner(), &wishes, &objects);
                let blocked = |change: &Change| matches!(change.action, Action::Create(_)) && taken(&change.class);
                prop_assert!(rest.iter().all(blocked), "{:?}", rest);
                let ours: Vec<&Object> = objects.iter().filter(|o| o.is_ours(&here().driver)).collect();
                for (class, wish) in &wishes {
                    let own: Vec<&&Object> = ours.iter().filter(|o| o.class == *class).collect();
                    if let Wish::Say(figures) = wish && !taken(class) {
                        prop_assert_eq!(own.len(), 1, "{}: {:?}", class, own);
                        prop_assert!(own[0].says(*figures, &here(), &owner()) && own[0].is_of(&here()));
                        prop_assert_eq!(&own[0].name, &here().object_name(class));
                    }
                }
                prop_assert!(ours.iter().all(|o| wishes.contains_key(&o.class)), "{:?}", ours);
                for object in &foreign {
                    prop_assert!(objects.contains(object), "{:?} was touched", object);
                }
            }
        }
    }
}
