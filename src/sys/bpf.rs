//! eBPF objects: a thin safe layer over libbpf (bpf(2)).
//!
//! The phases are types. [`OpenObject`] is parsed and can still be changed;
//! [`OpenObject::load`] turns it into an [`Object`], which holds the descriptors
//! of the loaded programs and maps and nothing of libbpf's memory; a [`Link`] is an
//! attached program. Dropping a value undoes it. Errors come from what libbpf
//! returns, never from a later look at errno.
//!
//! RLIMIT_MEMLOCK, which limits maps before 5.11, is raised by libbpf itself.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void, CStr, CString};
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::time::Duration;

use libbpf_sys as sys;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::abi::{Plain, SkBuff};
use super::cgroup;
pub use super::libbpf_log::lacking_capabilities;
use super::libbpf_log::{failure, listen};
use super::map::Shape;
pub use super::map::{possible_cpus, Map, PerCpuArray, Queue};
pub use super::mapped::{Mapped, Word};
pub use super::packed::{CONNECTIONS, MARKER, PROCESSES, SELFTEST, SKOPS};
pub use super::ringbuf::RingBuffer;
use crate::error::{At, Error, Result};
use crate::net::tc::Hook;

/// An object whose ELF file has been read and of which nothing is in the kernel.
#[derive(Debug)]
pub struct OpenObject(NonNull<sys::bpf_object>);

impl OpenObject {
    /// Reads an object from memory; `name` is for messages and the kernel's lists.
    ///
    /// # Errors
    /// It is not an eBPF object, or not one of this machine's byte order.
    pub fn from_memory(name: &str, bytes: &[u8]) -> Result<Self> {
        listen();
        let what = format!("cannot read the eBPF object {name:?}");
        let name = CString::new(name).map_err(|_| Error::internal(what.clone()))?;
        let opts = sys::bpf_object_open_opts {
            sz: size_of::<sys::bpf_object_open_opts>() as sys::size_t,
            object_name: name.as_ptr(),
            ..Default::default()
        };
        let (start, size) = (bytes.as_ptr().cast(), bytes.len() as sys::size_t);
        // SAFETY: the bytes and the options live until it returns; libbpf keeps
        // copies of what it needs later.
        let object = unsafe { sys::bpf_object__open_mem(start, size, &raw const opts) };
        Self::opened(object, what)
    }

    /// Reads an object from a file.
    ///
    /// # Errors
    /// It cannot be read, or is not an eBPF object.
    pub fn from_file(path: &Path) -> Result<Self> {
        listen();
        let what = format!("cannot read the eBPF object {path:?}");
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::config(format!("{what}: the path contains a NUL")))?;
        // SAFETY: the path ends in a NUL; no options are passed.
        let object = unsafe { sys::bpf_object__open_file(path.as_ptr(), ptr::null()) };
        Self::opened(object, what)
    }

    fn opened(object: *mut sys::bpf_object, what: String) -> Result<Self> {
        // These two return null and set errno, at once read.
        NonNull::new(object).map(OpenObject).ok_or_else(|| failure(what, last_errno()))
    }

    /// Sets the constants in section `section`, such as `.rodata.settings`.
    ///
    /// # Errors
    /// There is no such section, or it is not of that type's size.
    pub fn set_rodata<T: Plain>(&mut self, section: &str, value: &T) -> Result<()> {
        // The name of such a map has been cut or prefixed by some versions.
        let map = self.maps().find(|map| map_name(*map).ends_with(section));
        let map = map
            .ok_or_else(|| Error::config(format!("the eBPF object has no section {section:?}")))?;
        let mut size: sys::size_t = 0;
        // SAFETY: the map is this object's, and `size` is written to.
        let start = unsafe { sys::bpf_map__initial_value(map.as_ptr(), &raw mut size) };
        if start.is_null() || usize::try_from(size).ok() != Some(size_of::<T>()) {
            return Err(Error::config(format!(
                "section {section:?} of the eBPF object has {size} octets instead of {}",
                size_of::<T>()
            )));
        }
        let value: *const T = value;
        // SAFETY: both are of that many bytes, `value` is Plain, and libbpf's memory,
        // which only this object refers to, is writable until the load.
        unsafe { ptr::copy_nonoverlapping(value.cast::<u8>(), start.cast(), size_of::<T>()) };
        Ok(())
    }

    /// Sets how many entries map `name` has.
    ///
    /// # Errors
    /// There is no such map.
    pub fn set_max_entries(&mut self, name: &str, entries: u32) -> Result<()> {
        let map = self.maps().find(|map| map_name(*map) == name);
        let map = map.ok_or_else(|| no_such("map", name))?;
        // SAFETY: the map is this object's, which is not loaded yet.
        let code = unsafe { sys::bpf_map__set_max_entries(map.as_ptr(), entries) };
        check(code, || format!("cannot size map {name:?}"))?;
        Ok(())
    }

    /// Makes map `name` an ordinary one, without the flags that the object gives it.
    ///
    /// # Errors
    /// There is no such map.
    pub fn clear_map_flags(&mut self, name: &str) -> Result<()> {
        let map = self.maps().find(|map| map_name(*map) == name);
        let map = map.ok_or_else(|| no_such("map", name))?;
        // SAFETY: the map is this object's, which is not loaded yet.
        let code = unsafe { sys::bpf_map__set_map_flags(map.as_ptr(), 0) };
        check(code, || format!("cannot set the flags of map {name:?}"))?;
        Ok(())
    }

    /// Leaves out, at load, the programs whose name `wanted` refuses.
    ///
    /// # Errors
    /// None that are known, but libbpf may refuse.
    pub fn retain_programs(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for program in self.programs() {
            let name = program_name(program);
            // SAFETY: the program is this object's, which is not loaded yet.
            let code = unsafe { sys::bpf_program__set_autoload(program.as_ptr(), wanted(&name)) };
            check(code, || format!("cannot choose program {name:?}"))?;
        }
        Ok(())
    }

    /// Creates the maps and has the kernel verify the programs.
    ///
    /// # Errors
    /// The kernel refuses; the message ends in the verifier's reason.
    pub fn load(self) -> Result<Object> {
        listen();
        // Any signal that comes to this thread interrupts the verifier, also one that the
        // process ignores, and libbpf tries a few times only.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        // SAFETY: the object is open, is this value's, and is loaded once since
        // this consumes it.
        let code = unsafe { sys::bpf_object__load(self.0.as_ptr()) };
        let _ = before.and_then(|mask| mask.thread_set_mask());
        check(code, || "cannot load the eBPF programs".into())?;
        let mut object = Object { programs: Vec::new(), maps: Vec::new() };
        for program in self.programs() {
            // SAFETY: the program is this object's.
            let fd = unsafe { sys::bpf_program__fd(program.as_ptr()) };
            if fd >= 0 {
                let name = program_name(program);
                object.programs.push(Program { fd: duplicate(fd).at(name.clone())?, name });
            }
        }
        for map in self.maps() {
            let name = map_name(map);
            // SAFETY: the map is this object's, as in the three that follow.
            let fd = unsafe { sys::bpf_map__fd(map.as_ptr()) };
            // SAFETY: as above.
            let key_size = unsafe { sys::bpf_map__key_size(map.as_ptr()) };
            // SAFETY: as above.
            let value_size = unsafe { sys::bpf_map__value_size(map.as_ptr()) };
            // SAFETY: as above.
            let entries = unsafe { sys::bpf_map__max_entries(map.as_ptr()) };
            if fd >= 0 {
                let shape = Shape { key_size, value_size, entries };
                object.maps.push((name.clone(), duplicate(fd).at(name)?, shape));
            }
        }
        Ok(object)
    }

    fn maps(&self) -> impl Iterator<Item = NonNull<sys::bpf_map>> + use<> {
        let object = self.0;
        let mut map = ptr::null_mut();
        std::iter::from_fn(move || {
            // SAFETY: the callers use up the iterator while the object lives; `map`
            // is null, for the first, or the one before.
            map = unsafe { sys::bpf_object__next_map(object.as_ptr(), map) };
            NonNull::new(map)
        })
    }

    fn programs(&self) -> impl Iterator<Item = NonNull<sys::bpf_program>> + use<> {
        let object = self.0;
        let mut program = ptr::null_mut();
        std::iter::from_fn(move || {
            // SAFETY: as for the maps.
            program = unsafe { sys::bpf_object__next_program(object.as_ptr(), program) };
            NonNull::new(program)
        })
    }
}

impl Drop for OpenObject {
    fn drop(&mut self) {
        // SAFETY: the object is this value's and is not used again. It closes only
        // libbpf's own descriptors.
        unsafe { sys::bpf_object__close(self.0.as_ptr()) }
    }
}

/// A loaded object: its programs and maps, by name. The kernel frees them when the
/// last descriptor is closed and no link or filter uses them.
#[derive(Debug)]
pub struct Object {
    programs: Vec<Program>,
    maps: Vec<(String, OwnedFd, Shape)>,
}

impl Object {
    /// The program called `name`.
    ///
    /// # Errors
    /// There is none, or it was left out.
    pub fn program(&self, name: &str) -> Result<&Program> {
        let found = self.programs.iter().find(|program| program.name == name);
        found.ok_or_else(|| no_such("program", name))
    }

    /// The map called `name`, with a descriptor of its own.
    ///
    /// # Errors
    /// There is none, or its keys or values are not of those types' sizes.
    pub fn map<K: Plain, V: Plain>(&self, name: &str) -> Result<Map<K, V>> {
        let (fd, shape) = self.find_map(name)?;
        Map::new(name, fd, shape)
    }

    /// The array called `name`, to be read in place.
    ///
    /// # Errors
    /// There is none, or it is something else, or cannot be mapped.
    pub fn mapped<V: Plain>(&self, name: &str) -> Result<Mapped<V>> {
        let (fd, shape) = self.find_map(name)?;
        Mapped::new(name, &fd, shape)
    }

    /// The array of one value of eight octets called `name`, to be written in place.
    ///
    /// # Errors
    /// There is none, or it is something else, or cannot be mapped (before 5.5).
    pub fn word(&self, name: &str) -> Result<Word> {
        let (fd, shape) = self.find_map(name)?;
        Word::new(name, &fd, shape)
    }

    /// The per-CPU array of 64-bit counters called `name`.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn per_cpu_array(&self, name: &str) -> Result<PerCpuArray> {
        let (fd, shape) = self.find_map(name)?;
        PerCpuArray::new(name, fd, shape)
    }

    /// The queue called `name`.
    ///
    /// # Errors
    /// There is none, or its values are not of that type's size.
    pub fn queue<V: Plain>(&self, name: &str) -> Result<Queue<V>> {
        let (fd, shape) = self.find_map(name)?;
        Queue::new(name, fd, shape)
    }

    /// The ring buffer called `name`.
    ///
    /// # Errors
    /// There is none, or it cannot be mapped.
    pub fn ring_buffer<V: Plain>(&self, name: &str) -> Result<RingBuffer<V>> {
        let (fd, shape) = self.find_map(name)?;
        RingBuffer::new(fd, shape).at(name)
    }

    pub(super) fn find_map(&self, name: &str) -> Result<(OwnedFd, Shape)> {
        let found = self.maps.iter().find(|(known, ..)| known == name);
        let (_, fd, shape) = found.ok_or_else(|| no_such("map", name))?;
        let fd = fd.try_clone().map_err(|error| Error::os("cannot copy a map's descriptor", error));
        Ok((fd.at(name)?, *shape))
    }
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Program {
    name: String,
    fd: OwnedFd,
}

/// A program attached to an interface by tcx, or to a control group; dropping it
/// detaches, and so does the kernel when the process dies.
#[derive(Debug)]
pub struct Link(pub(super) OwnedFd);

impl Drop for Link {
    fn drop(&mut self) {
        // Closing the last descriptor detaches too, but a child that is between fork
        // and exec may have a copy. ENOLINK: the interface or the group is gone.
        // SAFETY: the descriptor is open and a link's.
        let code = unsafe { sys::bpf_link_detach(self.0.as_raw_fd()) };
        if code < 0 && code != -libc::ENOLINK {
            let cause = std::io::Error::from_raw_os_error(code.saturating_neg());
            log::error!("cannot detach a link: {cause}");
        }
    }
}

/// What a test run of a program did.
#[derive(Debug)]
pub struct Run {
    /// What the program returned, such as TC_ACT_UNSPEC (-1).
    pub verdict: i32,
    /// The packet as it left it.
    pub packet: Vec<u8>,
    /// The average time of a run.
    pub duration: Duration,
}

/// How much a test run's packet may grow.
const HEADROOM: usize = 256;

impl Program {
    /// Its name in the source.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Attaches it to the interface by tcx (6.6), before all other programs.
    ///
    /// # Errors
    /// The system's error, for the caller to judge: EINVAL where there is no tcx.
    pub fn attach_tcx(&self, ifindex: u32, hook: Hook) -> std::io::Result<Link> {
        let invalid = std::io::Error::from_raw_os_error(libc::EINVAL);
        let ifindex = c_int::try_from(ifindex).map_err(|_| invalid)?;
        let opts = sys::bpf_link_create_opts {
            sz: size_of::<sys::bpf_link_create_opts>() as sys::size_t,
            flags: sys::BPF_F_BEFORE,
            ..Default::default()
        };
        listen();
        let program = self.fd.as_raw_fd();
        // SAFETY: the descriptor is open, and the options live until it returns.
        let fd = unsafe { sys::bpf_link_create(program, ifindex, hook.tcx(), &raw const opts) };
        if fd < 0 {
            return Err(std::io::Error::from_raw_os_error(fd.saturating_neg()));
        }
        // SAFETY: it was just created and is nobody else's.
        Ok(Link(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it to a control group by a link (5.7), beside the programs of others.
    ///
    /// # Errors
    /// The system's error: EPERM where somebody has attached a program that tolerates no
    /// other.
    pub fn attach_cgroup(&self, cgroup: BorrowedFd<'_>) -> std::io::Result<Link> {
        listen();
        cgroup::attach_sock_ops(self.fd.as_fd(), cgroup).map(Link)
    }

    /// Runs it in the kernel on a copy of `packet` (BPF_PROG_TEST_RUN), `repeat`
    /// times in a row on the same copy. What `context` says of the packet is set
    /// before, and holds what the program left after.
    ///
    /// # Errors
    /// The kernel refuses packet or context.
    pub fn test_run(
        &self,
        packet: &[u8],
        context: Option<&mut SkBuff>,
        repeat: u32,
    ) -> Result<Run> {
        let what = || format!("cannot run {:?}", self.name);
        let too_much = |_| Error::internal(format!("{}: the packet is too long", what()));
        let mut out = vec![0; packet.len() + HEADROOM];
        let mut opts = sys::bpf_test_run_opts {
            sz: size_of::<sys::bpf_test_run_opts>() as sys::size_t,
            data_in: packet.as_ptr().cast(),
            data_size_in: u32::try_from(packet.len()).map_err(too_much)?,
            data_out: out.as_mut_ptr().cast(),
            data_size_out: u32::try_from(out.len()).map_err(too_much)?,
            repeat: c_int::try_from(repeat).map_err(too_much)?,
            ..Default::default()
        };
        if let Some(context) = context {
            let size = u32::try_from(size_of_val(context)).map_err(too_much)?;
            let context: *mut SkBuff = context;
            opts.ctx_in = context.cast::<c_void>().cast_const();
            opts.ctx_size_in = size;
            opts.ctx_out = context.cast();
            opts.ctx_size_out = size;
        }
        listen();
        // SAFETY: all that the options point to has the size that they say and
        // lives until it returns; the kernel reads the context before it writes it.
        let code = unsafe { sys::bpf_prog_test_run_opts(self.fd.as_raw_fd(), &raw mut opts) };
        check(code, what)?;
        out.truncate(opts.data_size_out as usize);
        Ok(Run {
            verdict: i32::from_ne_bytes(opts.retval.to_ne_bytes()),
            packet: out,
            duration: Duration::from_nanos(u64::from(opts.duration)),
        })
    }
}

/// The ids of the programs that tcx runs on that hook, in their order.
///
/// # Errors
/// The kernel has no tcx, or refuses.
pub fn tcx_programs(ifindex: u32, hook: Hook) -> std::io::Result<Vec<u32>> {
    let interface = c_int::try_from(ifindex).map_err(std::io::Error::other)?;
    // The kernel's limit (BPF_MPROG_MAX).
    let mut ids = vec![0_u32; 64];
    let mut count = 64;
    let (kind, start) = (hook.tcx(), ids.as_mut_ptr());
    // SAFETY: there is room for as many ids as `count` says, and both live until
    // it returns.
    let code =
        unsafe { sys::bpf_prog_query(interface, kind, 0, ptr::null_mut(), start, &raw mut count) };
    if code < 0 {
        return Err(std::io::Error::from_raw_os_error(code.saturating_neg()));
    }
    ids.truncate(count as usize);
    Ok(ids)
}

/// The ids of the sock_ops programs that are attached to the control group itself.
///
/// # Errors
/// It is not the folder of a control group, or the kernel refuses.
pub fn cgroup_programs(cgroup: &Path) -> std::io::Result<Vec<u32>> {
    cgroup::sock_ops_programs(std::fs::File::open(cgroup)?.as_fd())
}

impl Hook {
    fn tcx(self) -> sys::bpf_attach_type {
        match self {
            Hook::Egress => sys::BPF_TCX_EGRESS,
            Hook::Ingress => sys::BPF_TCX_INGRESS,
        }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn last_errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

fn check(code: c_int, what: impl FnOnce() -> String) -> Result<c_int> {
    if code < 0 {
        return Err(failure(what(), code));
    }
    Ok(code)
}

fn no_such(kind: &str, name: &str) -> Error {
    Error::config(format!("the eBPF object has no {kind} {name:?}"))
}

fn duplicate(fd: c_int) -> Result<OwnedFd> {
    // SAFETY: libbpf, whose descriptor it is, keeps it open while this copies it.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().map_err(|error| Error::os("cannot copy a descriptor", error))
}

fn map_name(map: NonNull<sys::bpf_map>) -> String {
    // SAFETY: the callers have it from an object that lives.
    let name = unsafe { sys::bpf_map__name(map.as_ptr()) };
    // SAFETY: it ends in a NUL and lives as long as the object.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

fn program_name(program: NonNull<sys::bpf_program>) -> String {
    // SAFETY: the callers have it from an object that lives.
    let name = unsafe { sys::bpf_program__name(program.as_ptr()) };
    // SAFETY: it ends in a NUL and lives as long as the object.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
