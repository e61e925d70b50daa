//! The few system calls that no safe wrapper offers: TAP ioctls, raw packet sockets, odd socket options.
//!
//! The only file that may hold unsafe code. Each function makes one call on plain, owned values and
//! turns its result into an `io::Result`; it must not keep state, decide or retry.
#![allow(unsafe_code)]

use std::{
    ffi::c_void,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// `SOL_NETLINK` options, linux/netlink.h.
pub const NETLINK_CAP_ACK: i32 = 10;
pub const NETLINK_EXT_ACK: i32 = 11;

const SOL_NETLINK: i32 = 270;
const SOL_PACKET: i32 = 263;
/// linux/if_packet.h
const PACKET_VNET_HDR: i32 = 15;
const PACKET_QDISC_BYPASS: i32 = 20;

/// Bytes of the `virtio_net_hdr` before each frame of a TAP device or packet socket that asked for it.
pub const VNET_HEADER: usize = 10;

/// Switches an integer option of a netlink socket on.
///
/// # Errors
/// When the kernel does not know the option.
pub fn netlink_option(fd: BorrowedFd<'_>, option: i32) -> io::Result<()> {
    set_int(fd, SOL_NETLINK, option, 1)
}

/// Turns an open /dev/net/tun into the TAP device `name`, its frames with a virtio header and no
/// packet information.
///
/// # Errors
/// When the name is taken or the caller may not administer the network.
pub fn tap_create(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: an all-zero `ifreq` is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map(drop)
}

/// Tells a TAP device which checksum and segmentation work its reader takes over.
///
/// # Errors
/// When the kernel does not know a flag.
pub fn tap_offload(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    check(result).map(drop)
}

/// A socket that sends whole frames out of the device `index`, each behind a virtio header, past the
/// device's qdisc. It receives nothing.
///
/// # Errors
/// When the caller may not open raw sockets, or there is no such device.
pub fn packet_sender(index: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only; protocol 0 subscribes to no packets.
    let raw = check(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    })?;
    // SAFETY: `socket` returned a fresh descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: an all-zero `sockaddr_ll` is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_ifindex = i32::try_from(index).unwrap_or_default();
    let length = socklen::<libc::sockaddr_ll>();
    // SAFETY: the address is a whole `sockaddr_ll` of the length given and outlives the call.
    check(unsafe { libc::bind(raw, (&raw const address).cast(), length) })?;
    let fd = std::os::fd::AsFd::as_fd(&socket);
    set_int(fd, SOL_PACKET, PACKET_VNET_HDR, 1)?;
    set_int(fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1)?;
    Ok(socket)
}

fn set_int(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let at = (&raw const value).cast::<c_void>();
    // SAFETY: the value is one `int` of the length given and outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, at, socklen::<i32>()) }).map(drop)
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

unsafe extern "C" {
    /// nss/nss_database.c of glibc: which services answer for a database, in this process only.
    #[cfg(target_feature = "crt-static")]
    fn __nss_configure_lookup(
        database: *const std::ffi::c_char,
        services: *const std::ffi::c_char,
    ) -> std::ffi::c_int;
}

/// Has users, groups and hosts looked up in the files of the host and by DNS alone, which are part
/// of a statically linked glibc since 2.34. What else nsswitch.conf names are plug-ins for a libc of
/// the very same version, and to load one for another libc ends in tears. Call it before anything is
/// looked up. Does nothing in a dynamically linked program.
pub fn names_without_plugins() {
    #[cfg(target_feature = "crt-static")]
    for (database, services) in [
        (c"passwd", c"files"),
        (c"group", c"files"),
        (c"initgroups", c"files"),
        (c"services", c"files"),
        (c"hosts", c"files dns"),
    ] {
        // SAFETY: both are C strings that live for ever; glibc copies what it keeps. It fails for
        // databases that it does not know, which are then not looked up either.
        let _ = unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}
