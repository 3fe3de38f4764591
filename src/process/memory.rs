//! In what portions the kernel gives us memory.

use rustix::thread::disable_transparent_huge_pages;

/// Asks for pages of the usual size, never for huge ones.
///
/// A huge page is 2 MiB as soon as one byte of it is used. What we hold is small and scattered, so a replica would take up to
/// three times the memory (docs/explanation/performance.md), and its limit has to pay for that. The kernel decides by
/// `/sys/kernel/mm/transparent_hugepage/enabled`: with `madvise` the allocator would have to ask for them and doesn't (its
/// feature `no_thp`); with `always` only this keeps them away.
pub fn disable_huge_pages() {
    // Where the kernel knows no huge pages there is nothing to ask for.
    let _ = disable_transparent_huge_pages(true);
}
