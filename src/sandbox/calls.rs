//! The second layer's seccomp filters: which system calls are refused.
//!
//! Calls that affect only the caller are allowed. Calls that affect other processes, their user or the
//! machine are refused with EPERM. Calls that only read (`getpriority`, `sched_getaffinity`) are allowed.
//! Three kinds of calls are restricted by other means:
//!
//! - calls that need a capability that plugin processes do not have: by the kernel;
//! - signals, and tracing other processes or reading their memory, in [`super::Mode::On`]: by Landlock;
//! - writing: by the mounts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, sock_filter,
};

/// The process that a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plugin process in [`super::Mode::On`].
    On,
    /// A fork server of [`super::Mode::On`]. Its children inherit the filter, and each may name itself by
    /// its own process ID. So this filter does not check process IDs; the children's own filters do.
    Fork,
    /// A plugin process in [`super::Mode::Strict`].
    Strict,
    /// A plugin process in [`super::Mode::Strict`] without mounts and namespaces. The filter also refuses
    /// what these would prevent.
    StrictAlone,
}

/// Placeholder in a filter for the ID of the process that applies it. The process replaces it by its own
/// ID. No process has this ID.
const OWN_PID: u32 = 0x7FFF_CA5B;

/// A filter, as a sealed memory file with its BPF instructions.
pub fn filter_file(kind: Kind) -> io::Result<OwnedFd> {
    let program = filter(kind).map_err(io::Error::other)?;
    // The kernel reads instructions in the machine's byte order.
    #[allow(clippy::host_endian_bytes)]
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|step| {
            let [a, b] = step.code.to_ne_bytes();
            let [e, f, g, h] = step.k.to_ne_bytes();
            [a, b, step.jt, step.jf, e, f, g, h]
        })
        .collect();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("seccomp", flags)?);
    file.write_all(&bytes)?;
    // Fork servers of all environments receive this file. Code of an environment could change it without
    // seals.
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Applies a filter to this process.
pub(super) fn try_seccomp(kind: Kind) -> Result<(), String> {
    let program = filter(kind)?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

fn filter(kind: Kind) -> Result<BpfProgram, String> {
    let made = rules(kind).and_then(|rules| {
        let arch = std::env::consts::ARCH.try_into()?;
        let refused = SeccompAction::Errno(libc::EPERM as u32);
        SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()
    });
    let made: BpfProgram = made.map_err(|error: BackendError| error.to_string())?;
    let mut program = missing_calls();
    program.extend(without_lingering());
    program.extend(without_huge_pages());
    if kind != Kind::Fork {
        program.extend(as_scheduled());
    }
    program.extend(made);
    Ok(program)
}

fn step(code: u32, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    }
}

/// Offset of the low half of an argument in a filter's input (`struct seccomp_data`).
const fn argument(index: u32) -> u32 {
    let low = if cfg!(target_endian = "big") { 4 } else { 0 };
    16 + 8 * index + low
}

/// Loads a word of the filter's input.
fn load(offset: u32) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset)
}

/// Jumps over `others` instructions, the rest of a part of the filter, when the loaded word is not `value`.
fn equals(others: u8, value: u32) -> sock_filter {
    step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, others, value)
}

/// Setting SO_LINGER succeeds without effect. Otherwise closing such a socket could block for the
/// option's time, also in another process that the socket was sent to.
fn without_lingering() -> BpfProgram {
    vec![
        load(0),
        equals(5, libc::SYS_setsockopt as u32),
        load(argument(1)),
        equals(3, libc::SOL_SOCKET as u32),
        load(argument(2)),
        equals(1, libc::SO_LINGER as u32),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO),
    ]
}

/// Mapping huge pages fails with ENOMEM, as on a machine that has none. They are a pool that all users of
/// the machine share (vm.nr_hugepages). A mapping reserves them even if it is never written, and they do
/// not count for the memory of a job. Transparent huge pages are another thing, and allowed.
fn without_huge_pages() -> BpfProgram {
    // The argument with the flags, and the flag.
    let calls = [
        (libc::SYS_mmap, 3, libc::MAP_HUGETLB as u32),
        (libc::SYS_memfd_create, 1, libc::MFD_HUGETLB),
        (libc::SYS_shmget, 2, libc::SHM_HUGETLB as u32),
    ];
    let steps = calls.into_iter().flat_map(|(call, flags, flag)| {
        [
            load(0),
            equals(3, call as u32),
            load(argument(flags)),
            step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 1, flag),
            step(
                libc::BPF_RET | libc::BPF_K,
                0,
                libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32,
            ),
        ]
    });
    steps.collect()
}

/// Setting the normal policy, SCHED_OTHER, by an ID succeeds without effect. glibc's
/// `pthread_setschedparam` names the caller's own thread by its ID, and ZeroMQ's library, which sets this
/// policy for each of its threads, aborts when that fails.
fn as_scheduled() -> BpfProgram {
    // The caller itself is left to the kernel.
    let is_not = |to, value| sock_filter {
        jt: to,
        ..equals(0, value)
    };
    vec![
        load(0),
        equals(6, libc::SYS_sched_setscheduler as u32),
        load(argument(1)),
        equals(4, libc::SCHED_OTHER as u32),
        load(argument(0)),
        is_not(2, 0),
        is_not(1, OWN_PID),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO),
    ]
}

/// Calls that fail with ENOSYS, as on a kernel that does not have them.
fn missing_calls() -> BpfProgram {
    let mut missing = Vec::new();
    // The rules do not cover the call numbers of x32, a second ABI of this architecture.
    if cfg!(target_arch = "x86_64") {
        missing.push((libc::BPF_JGE, 0x4000_0000));
    }
    // The flags of clone3 are in memory, which a filter cannot read. Callers fall back to clone.
    missing.push((libc::BPF_JEQ, libc::SYS_clone3 as u32));
    // The operations of io_uring are in memory, too. Container runtimes also refuse it.
    missing.push((libc::BPF_JEQ, libc::SYS_io_uring_setup as u32));
    // Contexts of asynchronous I/O reserve a part of fs.aio-max-nr, which all users of the machine share. A
    // few calls reserve all of it.
    missing.push((libc::BPF_JEQ, libc::SYS_io_setup as u32));
    let steps = missing.into_iter().flat_map(|(compare, number)| {
        let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            step(libc::BPF_JMP | compare | libc::BPF_K, 1, number),
            step(libc::BPF_RET | libc::BPF_K, 0, answer),
        ]
    });
    steps.collect()
}

fn is_strict(kind: Kind) -> bool {
    matches!(kind, Kind::Strict | Kind::StrictAlone)
}

type Condition = Result<SeccompCondition, BackendError>;

fn is(argument: u8, value: u32) -> Condition {
    SeccompCondition::new(argument, Len::Dword, Op::Eq, value.into())
}

fn is_not(argument: u8, value: u32) -> Condition {
    SeccompCondition::new(argument, Len::Dword, Op::Ne, value.into())
}

fn has_flag(argument: u8, flag: u32) -> Condition {
    SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(flag.into()), flag.into())
}

fn is_pointer(argument: u8) -> Condition {
    SeccompCondition::new(argument, Len::Qword, Op::Ne, 0)
}

/// The refused calls by their numbers. A call without rules is always refused, others when one of their
/// rules matches.
fn rules(kind: Kind) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut when = |call: i64, conditions: Vec<Condition>| {
        let conditions = conditions.into_iter().collect::<Result<Vec<_>, _>>()?;
        let rule = SeccompRule::new(conditions)?;
        rules.entry(call).or_default().push(rule);
        Ok::<_, BackendError>(())
    };
    let of_users = [
        (libc::SYS_setpriority, PRIO_USER),
        (libc::SYS_ioprio_set, IOPRIO_WHO_USER),
    ];
    for (call, user) in of_users {
        when(call, vec![is(0, user)])?;
    }
    if kind != Kind::Fork {
        // 0 and the caller's own ID both mean the caller.
        let other = |argument| vec![is_not(argument, 0), is_not(argument, OWN_PID)];
        for call in OF_A_PROCESS {
            when(*call, other(0))?;
        }
        let mut sets_limits = other(0);
        sets_limits.push(is_pointer(2));
        when(libc::SYS_prlimit64, sets_limits)?;
        for (call, _) in of_users {
            when(call, other(1))?;
        }
    }
    // A file lease blocks other processes that open the file.
    when(libc::SYS_fcntl, vec![is(1, libc::F_SETLEASE as u32)])?;
    // A process that detaches its mounts could rename the paths that they protect.
    when(
        libc::SYS_umount2,
        vec![has_flag(1, libc::MNT_DETACH as u32)],
    )?;
    for typing in [libc::TIOCSTI, libc::TIOCLINUX] {
        when(libc::SYS_ioctl, vec![is(1, typing as u32)])?;
    }
    // In a cgroup namespace of its own a process could mount the worker's control group and kill the
    // worker.
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        when(call, vec![has_flag(0, libc::CLONE_NEWCGROUP as u32)])?;
    }
    // The limits of a job count its descendants. A process with CLONE_PARENT would be a sibling.
    when(
        libc::SYS_clone,
        vec![has_flag(0, libc::CLONE_PARENT as u32)],
    )?;
    // Nor would orphans be counted of a process that is no subreaper any more. The kernel takes any other
    // value as "is one".
    when(
        libc::SYS_prctl,
        vec![
            is(0, libc::PR_SET_CHILD_SUBREAPER as u32),
            SeccompCondition::new(1, Len::Qword, Op::Eq, 0),
        ],
    )?;
    if is_strict(kind) {
        // Unix sockets are allowed, for communication between the plugin's own processes.
        when(libc::SYS_socket, vec![is_not(0, libc::AF_UNIX as u32)])?;
        when(
            libc::SYS_clone,
            vec![has_flag(0, libc::CLONE_NEWUSER as u32)],
        )?;
    }
    if kind == Kind::StrictAlone {
        for change in FILE_FLAGS {
            when(libc::SYS_ioctl, vec![is(1, *change)])?;
        }
    }
    // This must be last: it replaces the conditional rules of these calls.
    let mut always = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    always(REFUSED);
    if is_strict(kind) {
        always(REFUSED_STRICTLY);
    }
    if kind == Kind::StrictAlone {
        always(OUTLIVING);
        always(METADATA);
    }
    Ok(rules)
}

/// Calls that change the process whose ID is their first argument.
const OF_A_PROCESS: &[i64] = &[
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// System calls that no plugin needs and that have effects outside its process: kernel keyrings, BPF
/// programs, files by handles (which bypass mounts), memory of other processes, `pivot_root` (which
/// leaves the mounts), kernel modules, the machine's state.
const REFUSED: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_open_by_handle_at,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pivot_root,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
];

/// Calls that would bypass the other rules of [`super::Mode::Strict`], or observe files that it cannot
/// read. Instances of `inotify` and `fanotify` are also counted by user, and this mode has no namespace
/// with counts of its own.
const REFUSED_STRICTLY: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsmount,
    libc::SYS_userfaultfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_inotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_syslog,
];

/// Calls for shared memory, message queues and semaphores, which persist when their process has ended.
const OUTLIVING: &[i64] = &[
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

/// Calls that change modes, owners, times and attributes of files, which Landlock does not restrict.
const METADATA: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SYS_SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SYS_REMOVEXATTRAT,
    SYS_FILE_SETATTR,
];

// These numbers are the same on all architectures. The libc crate does not have all of them for each.
const SYS_FCHMODAT2: i64 = 452;
const SYS_SETXATTRAT: i64 = 463;
const SYS_REMOVEXATTRAT: i64 = 466;
const SYS_FILE_SETATTR: i64 = 469;

/// The value of `which` for a user in `setpriority` and in `ioprio_set`, from linux/resource.h and
/// linux/ioprio.h.
const PRIO_USER: u32 = 2;
const IOPRIO_WHO_USER: u32 = 3;

/// ioctl requests that change plain files, from linux/fs.h, linux/fscrypt.h and linux/fsverity.h:
/// FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION, FS_IOC_SET_ENCRYPTION_POLICY,
/// FS_IOC_ENABLE_VERITY.
const FILE_FLAGS: &[u32] = &[
    0x4008_6602,
    0x401C_5820,
    0x4008_7602,
    0x800C_6613,
    0x4080_6685,
];

#[cfg(test)]
mod tests;
