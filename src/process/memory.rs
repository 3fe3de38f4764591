//! How the kernel allocates memory to the process: without transparent huge pages.

use rustix::thread::disable_transparent_huge_pages;

/// Asks for pages of the usual size, never for huge ones.
///
/// A huge page takes 2 MiB as soon as one byte of it is used. The process holds small, scattered
/// values, so a replica would take up to three times the memory (docs/explanation/performance.md),
/// and its limit would have to allow that. The kernel decides by
/// `/sys/kernel/mm/transparent_hugepage/enabled`: with `madvise` the allocator would have to ask
/// for huge pages and doesn't (its feature `no_thp`); with `always` only this call prevents them.
pub fn disable_huge_pages() {
    // A kernel without huge pages refuses, and nothing is to be done.
    let _ = disable_transparent_huge_pages(true);
}
