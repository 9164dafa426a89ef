//! Unit tests of `calls.rs`.

use super::*;

/// The result of a filter for a call: 0 or an errno. Interprets only the instructions that these
/// filters use.
fn answer(program: &[sock_filter], call: i64, arguments: [u64; 6]) -> u32 {
    let arch: u32 = match std::env::consts::ARCH {
        "x86_64" => 0xC000_003E,
        "aarch64" => 0xC000_00B7,
        _ => 0xC000_00F3,
    };
    let mut data = vec![call as u32, arch, 0, 0];
    data.extend(
        arguments
            .iter()
            .flat_map(|word| [*word as u32, (*word >> 32) as u32]),
    );
    let (mut at, mut value) = (0, 0);
    loop {
        let step = &program[at];
        let (class, operation) = (step.code & 7, u32::from(step.code) & 0xF0);
        at += 1;
        let mut jump = |holds| at += usize::from(if holds { step.jt } else { step.jf });
        match (class, operation) {
            (0, _) => value = data[step.k as usize / 4],
            (4, 0x50) => value &= step.k,
            (5, libc::BPF_JEQ) => jump(value == step.k),
            (5, libc::BPF_JGT) => jump(value > step.k),
            (5, libc::BPF_JGE) => jump(value >= step.k),
            (5, libc::BPF_JSET) => jump(value & step.k != 0),
            (5, libc::BPF_JA) => at += step.k as usize,
            (6, _) if step.k == libc::SECCOMP_RET_ALLOW => return 0,
            (6, _) => {
                assert_eq!(step.k & 0xFFFF_0000, libc::SECCOMP_RET_ERRNO);
                return match step.k & 0xFFFF {
                    0 => FAKED,
                    errno => errno,
                };
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The answer for a call that succeeds without effect (errno 0).
const FAKED: u32 = u32::MAX;
const NO: u32 = libc::EPERM as u32;
const NONE: u32 = libc::ENOSYS as u32;
const LACK: u32 = libc::ENOMEM as u32;
const OWN: u64 = OWN_PID as u64;
const OTHER: u64 = 4711;

/// A call, its first arguments, and the answers of the filters `On`, `Strict` and `StrictAlone`.
const TABLE: &[(i64, &[u64], [u32; 3])] = &[
    (libc::SYS_read, &[0], [0, 0, 0]),
    (libc::SYS_prlimit64, &[OTHER, 7, 0x1_0000_0000], [NO; 3]),
    (libc::SYS_prlimit64, &[OTHER, 7, 0x1000], [NO; 3]),
    (libc::SYS_prlimit64, &[OTHER, 7, 0], [0; 3]),
    (libc::SYS_prlimit64, &[0, 7, 0x1000], [0; 3]),
    (libc::SYS_prlimit64, &[OWN, 7, 0x1000], [0; 3]),
    // The kernel reads only the low 32 bits of an ID.
    (libc::SYS_prlimit64, &[0x1_0000_0000, 7, 0x1000], [0; 3]),
    (libc::SYS_sched_setaffinity, &[OTHER], [NO; 3]),
    (libc::SYS_sched_setaffinity, &[OWN], [0; 3]),
    (libc::SYS_sched_setaffinity, &[0], [0; 3]),
    (libc::SYS_sched_getaffinity, &[OTHER], [0; 3]),
    (libc::SYS_sched_setscheduler, &[OTHER, 3], [NO; 3]),
    (libc::SYS_sched_setscheduler, &[OTHER, 0], [FAKED; 3]),
    (libc::SYS_sched_setscheduler, &[OWN, 0], [0; 3]),
    (libc::SYS_sched_setscheduler, &[0, 0], [0; 3]),
    (libc::SYS_sched_setscheduler, &[0, 3], [0; 3]),
    (libc::SYS_sched_setattr, &[OTHER], [NO; 3]),
    (libc::SYS_sched_setparam, &[OTHER], [NO; 3]),
    (libc::SYS_migrate_pages, &[OTHER], [NO; 3]),
    (libc::SYS_move_pages, &[OTHER], [NO; 3]),
    (libc::SYS_move_pages, &[0], [0; 3]),
    // 0, 1, 2: a process, a process group, a user.
    (libc::SYS_setpriority, &[0, OTHER], [NO; 3]),
    (libc::SYS_setpriority, &[0, 0], [0; 3]),
    (libc::SYS_setpriority, &[0, OWN], [0; 3]),
    (libc::SYS_setpriority, &[1, OTHER], [NO; 3]),
    (libc::SYS_setpriority, &[1, 0], [0; 3]),
    (libc::SYS_setpriority, &[2, 0], [NO; 3]),
    (libc::SYS_ioprio_set, &[1, 0], [0; 3]),
    (libc::SYS_ioprio_set, &[1, OTHER], [NO; 3]),
    (libc::SYS_ioprio_set, &[2, OTHER], [NO; 3]),
    (libc::SYS_ioprio_set, &[3, 0], [NO; 3]),
    (libc::SYS_process_madvise, &[], [NO; 3]),
    (libc::SYS_process_mrelease, &[], [NO; 3]),
    (libc::SYS_perf_event_open, &[], [NO; 3]),
    (libc::SYS_keyctl, &[], [NO; 3]),
    (libc::SYS_quotactl, &[], [NO; 3]),
    (libc::SYS_swapon, &[], [NO; 3]),
    (libc::SYS_pidfd_open, &[OTHER], [0; 3]),
    (libc::SYS_pidfd_getfd, &[], [0, NO, NO]),
    (libc::SYS_kcmp, &[], [0, NO, NO]),
    (libc::SYS_io_uring_setup, &[], [NONE; 3]),
    (libc::SYS_setsockopt, &[3, 1, 13], [FAKED; 3]),
    (
        libc::SYS_setsockopt,
        &[3, 0x1_0000_0001, 0x1_0000_000D],
        [FAKED; 3],
    ),
    (libc::SYS_setsockopt, &[3, 1, 12], [0; 3]),
    (libc::SYS_setsockopt, &[3, 6, 13], [0; 3]),
    (libc::SYS_getsockopt, &[3, 1, 13], [0; 3]),
    (libc::SYS_setns, &[], [0, NO, NO]),
    (libc::SYS_pivot_root, &[], [NO; 3]),
    (libc::SYS_umount2, &[0, 2], [NO; 3]),
    (libc::SYS_umount2, &[0, 10], [NO; 3]),
    (libc::SYS_umount2, &[0, 0], [0, NO, NO]),
    (libc::SYS_fcntl, &[3, 1024], [NO; 3]),
    (libc::SYS_fcntl, &[3, 3], [0; 3]),
    (libc::SYS_ioctl, &[0, 0x5412], [NO; 3]),
    (libc::SYS_ioctl, &[0, 0x5413], [0; 3]),
    (libc::SYS_ioctl, &[0, 0x4008_6602], [0, 0, NO]),
    (libc::SYS_socket, &[1], [0; 3]),
    (libc::SYS_socket, &[2], [0, NO, NO]),
    (libc::SYS_clone, &[0x0100_0000], [0; 3]),
    (libc::SYS_clone, &[0x8011], [NO; 3]),
    (libc::SYS_clone, &[0x0200_0000], [NO; 3]),
    (libc::SYS_unshare, &[0x0200_0000], [NO; 3]),
    (libc::SYS_unshare, &[0x1002_0000], [0, NO, NO]),
    (libc::SYS_clone, &[0x1000_0011], [0, NO, NO]),
    (libc::SYS_clone3, &[], [NONE; 3]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_inotify_init, &[], [0, NO, NO]),
    (libc::SYS_inotify_init1, &[], [0, NO, NO]),
    (libc::SYS_inotify_add_watch, &[], [0, NO, NO]),
    (libc::SYS_fanotify_init, &[], [0, NO, NO]),
    (libc::SYS_fanotify_mark, &[], [0, NO, NO]),
    (libc::SYS_userfaultfd, &[], [0, NO, NO]),
    (libc::SYS_add_key, &[], [NO; 3]),
    (libc::SYS_request_key, &[], [NO; 3]),
    (libc::SYS_bpf, &[], [NO; 3]),
    (libc::SYS_io_setup, &[128], [NONE; 3]),
    // MAP_PRIVATE and MAP_ANONYMOUS, without and with MAP_HUGETLB.
    (libc::SYS_mmap, &[0, 4096, 3, 0x22], [0; 3]),
    (libc::SYS_mmap, &[0, 4096, 3, 0x4_0022], [LACK; 3]),
    (libc::SYS_memfd_create, &[0, 1], [0; 3]),
    (libc::SYS_memfd_create, &[0, 5], [LACK; 3]),
    (libc::SYS_shmget, &[0, 4096, 0o1600], [0, 0, NO]),
    (libc::SYS_shmget, &[0, 4096, 0o5600], [LACK; 3]),
    (libc::SYS_shmget, &[], [0, 0, NO]),
    (libc::SYS_mq_open, &[], [0, 0, NO]),
    (libc::SYS_fchmod, &[], [0, 0, NO]),
    (libc::SYS_utimensat, &[], [0, 0, NO]),
    (SYS_FILE_SETATTR, &[], [0, 0, NO]),
];

#[test]
fn calls_that_reach_beyond_their_process_are_refused() {
    let kinds = [Kind::On, Kind::Strict, Kind::StrictAlone];
    for (index, kind) in kinds.into_iter().enumerate() {
        let program = filter(kind).unwrap();
        for (call, first, answers) in TABLE {
            let mut arguments = [0; 6];
            arguments[..first.len()].copy_from_slice(first);
            let got = answer(&program, *call, arguments);
            assert_eq!(got, answers[index], "{kind:?}: {call} {first:?}");
        }
        let mut file = std::fs::File::from(filter_file(kind).unwrap());
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    }
}

#[test]
fn children_of_a_fork_server_can_name_themselves() {
    let program = filter(Kind::Fork).unwrap();
    let cases: &[(i64, &[u64], u32)] = &[
        (libc::SYS_prlimit64, &[OTHER, 7, 0x1000], 0),
        (libc::SYS_sched_setaffinity, &[OTHER], 0),
        (libc::SYS_sched_setscheduler, &[OTHER, 0], 0),
        (libc::SYS_setpriority, &[2, 0], NO),
        (libc::SYS_ioprio_set, &[3, 0], NO),
        (libc::SYS_umount2, &[0, 2], NO),
        (libc::SYS_keyctl, &[], NO),
        (libc::SYS_io_setup, &[128], NONE),
        (libc::SYS_mount, &[], 0),
        (libc::SYS_unshare, &[], 0),
        (libc::SYS_clone, &[0x11], 0),
        (libc::SYS_clone, &[0x8011], NO),
    ];
    for (call, first, expected) in cases {
        let mut arguments = [0; 6];
        arguments[..first.len()].copy_from_slice(first);
        assert_eq!(
            answer(&program, *call, arguments),
            *expected,
            "{call} {first:?}"
        );
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_numbers_of_x32_are_none_of_the_kernels() {
    let program = filter(Kind::On).unwrap();
    let keyctl = 0x4000_0000 | libc::SYS_keyctl;
    assert_eq!(answer(&program, keyctl, [0; 6]), NONE);
}

#[test]
fn plugin_processes_know_what_stands_for_their_id() {
    let line = format!("OWN_PID = {OWN_PID:#X}\n").replace("0X", "0x");
    assert!(crate::plugin::SHIM.contains(&line));
}
