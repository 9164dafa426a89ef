//! Tests of how workers of the reference system are recognized after a restart of the sentinel.

use super::*;
use crate::job::User;

/// A worker of the reference system has a routing ID that another worker had before.
#[test]
fn a_routing_id_is_that_of_the_last_worker_that_had_it() {
    let (ann, bob) = (User::parse("ann"), User::parse("bob"));
    let users = [
        [None, None],
        [Some(&ann), Some(&ann)],
        [Some(&ann), Some(&bob)],
    ];
    for ids in [["a1", "a0"], ["a0", "a1"], ["a0", "R"]] {
        for users in users {
            let mut scene = Scene::new();
            let receive = |scene: &mut Scene, user: Option<&User>, payload: Payload<'_>| {
                let (now, at) = scene.now();
                let from = Sender {
                    peer: PeerId::from_u64(1),
                    routing_id: b"R",
                    user,
                };
                let scheduler = scene.scheduler.as_mut().unwrap();
                let refused = scheduler.control.handle_message(&from, 0, payload, now);
                assert_eq!(refused, None, "{ids:?} {user:?}");
                scheduler.iterate(now, &at);
            };
            for (id, user) in ids.into_iter().zip(users) {
                let identify = Identify {
                    capabilities: vec!["*".into()],
                    worker_id: Some(id.into()),
                    ..Identify::default()
                };
                receive(&mut scene, user, Payload::Identify(identify));
                let (now, _) = scene.now();
                let control = &mut scene.scheduler.as_mut().unwrap().control;
                control.handle_disconnected(PeerId::from_u64(1), b"R", now);
                for _ in 0..30 {
                    scene.tick();
                }
            }
            scene.restart(LEASE);
            receive(
                &mut scene,
                users[1],
                Payload::Heartbeat(Heartbeat::default()),
            );
            let (now, _) = scene.now();
            let control = &scene.scheduler.as_ref().unwrap().control;
            let known: Vec<String> = control
                .openings(now)
                .into_iter()
                .map(|opening| opening.worker_id)
                .collect();
            assert_eq!(known, [ids[1]], "{users:?}");
        }
    }
}
