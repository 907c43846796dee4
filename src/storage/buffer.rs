//! Page-aligned memory for I/O, and shared slices of it.
//!
//! A [`Buffer`] is initialised memory on a page boundary, so that O_DIRECT takes it and safe code reads it. Freed
//! buffers wait in a small pool of their thread: a fresh mapping would cost a page fault for every 4 KiB.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, madvise};

use crate::units::PAGE_BYTES;

/// What the kernel makes one entry of a page table for, on request.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Sizes up to this are pooled; larger ones are rare and go back to the allocator.
const POOLED_BYTES_MAX: usize = 4 << 20;
/// What one thread keeps back for reuse.
const POOL_BYTES_MAX: usize = 16 << 20;

/// Owned, page-aligned, initialised memory.
pub struct Buffer {
    memory: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: a Buffer owns its memory alone, like a Box<[u8]>.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, like a Box<[u8]>.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Buffer {
        let mut buffer = Buffer::recycled(len);
        buffer.fill(0);
        buffer
    }

    /// A buffer of `len` bytes that holds whatever an earlier user of this thread left there: for what is
    /// overwritten whole, such as a read.
    pub fn recycled(len: usize) -> Buffer {
        let capacity = Buffer::capacity_for(len);
        if let Some(mut buffer) = POOL.try_with(|pool| pool.borrow_mut().take(capacity)).ok().flatten() {
            buffer.len = len;
            return buffer;
        }
        Buffer { memory: zeroed_memory(Buffer::layout(capacity)), capacity, len }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::recycled(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Shortens the buffer to `len` bytes.
    ///
    /// # Panics
    /// If it is shorter than that.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncate({len}) of a buffer of {} bytes", self.len);
        self.len = len;
    }

    /// Shares the whole buffer.
    pub fn freeze(self) -> Slice {
        let range = 0..self.len;
        Slice { buffer: Arc::new(self), start: range.start, len: range.end }
    }

    /// Powers of two where buffers serve again, so that they fit each other; beyond that no more than is needed.
    fn capacity_for(len: usize) -> usize {
        if len > POOLED_BYTES_MAX {
            return len.next_multiple_of(HUGE_PAGE_BYTES);
        }
        len.max(PAGE_BYTES).next_power_of_two()
    }

    fn layout(capacity: usize) -> Layout {
        let align = if capacity >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { PAGE_BYTES };
        Layout::from_size_align(capacity, align).expect("a page is a power of two and capacity is bounded")
    }
}

/// Memory of whole pages, in huge ones where it is large: 64 MiB cost 32 page faults then and not 16,384, and the kernel
/// pins as few of them for each O_DIRECT request.
fn zeroed_memory(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layout's size is at least a page, so not zero.
    let memory = unsafe { alloc(layout) };
    let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
    if layout.size() >= HUGE_PAGE_BYTES {
        // Where the kernel has none, small pages do.
        // SAFETY: the advice changes how pages are made up, not what they hold, and the range is this allocation.
        let _ = unsafe { madvise(memory.as_ptr().cast(), layout.size(), Advice::LinuxHugepage) };
    }
    // SAFETY: the allocation is as long as its layout says, and nobody else has it yet.
    unsafe { memory.as_ptr().write_bytes(0, layout.size()) };
    memory
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity <= POOLED_BYTES_MAX {
            let kept = Buffer { memory: self.memory, capacity: self.capacity, len: self.capacity };
            let mut kept = std::mem::ManuallyDrop::new(kept);
            let pooled = POOL.try_with(|pool| match pool.try_borrow_mut() {
                Ok(mut pool) => pool.put(&mut kept),
                Err(_) => false,
            });
            if pooled == Ok(true) {
                return;
            }
        }
        // SAFETY: `memory` came from alloc with this layout, and nobody else owns it.
        unsafe { dealloc(self.memory.as_ptr(), Buffer::layout(self.capacity)) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `memory` holds `capacity >= len` initialised bytes that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `memory` holds `capacity >= len` initialised bytes that this buffer owns alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// A shared, immutable part of a [`Buffer`].
#[derive(Clone)]
pub struct Slice {
    buffer: Arc<Buffer>,
    start: usize,
    len: usize,
}

impl Slice {
    /// A part of this slice; it shares the memory.
    ///
    /// # Panics
    /// If `range` reaches outside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of a slice of {} bytes",
            self.len
        );
        Slice { buffer: Arc::clone(&self.buffer), start: self.start + range.start, len: range.len() }
    }

    /// Whether it keeps memory of more than twice its length.
    pub fn is_wasteful(&self) -> bool {
        self.buffer.capacity / 2 > self.len
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { free: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

/// Capacities are powers of two from a page to `POOLED_BYTES_MAX`.
const CLASSES: usize = (POOLED_BYTES_MAX / PAGE_BYTES).ilog2() as usize + 1;

/// Free buffers of one thread, by capacity class.
struct Pool {
    free: [Vec<Buffer>; CLASSES],
    bytes: usize,
}

impl Pool {
    fn class(capacity: usize) -> usize {
        (capacity / PAGE_BYTES).ilog2() as usize
    }

    fn take(&mut self, capacity: usize) -> Option<Buffer> {
        if capacity > POOLED_BYTES_MAX {
            return None;
        }
        let buffer = self.free[Pool::class(capacity)].pop()?;
        self.bytes -= capacity;
        Some(buffer)
    }

    /// Whether there was room for the buffer.
    fn put(&mut self, buffer: &mut std::mem::ManuallyDrop<Buffer>) -> bool {
        if self.bytes + buffer.capacity > POOL_BYTES_MAX {
            return false;
        }
        self.bytes += buffer.capacity;
        let class = Pool::class(buffer.capacity);
        // SAFETY: the caller forgets the buffer once it is taken here, so it has one owner again.
        self.free[class].push(unsafe { std::mem::ManuallyDrop::take(buffer) });
        true
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for buffer in self.free.iter_mut().flat_map(|class| class.drain(..)) {
            let buffer = std::mem::ManuallyDrop::new(buffer);
            // SAFETY: as in Buffer::drop; the pool owned it, and it is not dropped again.
            unsafe { dealloc(buffer.memory.as_ptr(), Buffer::layout(buffer.capacity)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_page_aligned_and_keeps_its_bytes() {
        for len in [1, 512, 4096, 4097, 1 << 20, POOLED_BYTES_MAX, POOLED_BYTES_MAX + 1] {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.as_ptr().addr() % PAGE_BYTES, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer[len - 1] = 7;
            let shared = buffer.freeze();
            assert_eq!(shared.slice(len - 1..len)[..], [7]);
        }
    }

    #[test]
    fn a_zeroed_buffer_is_zero_after_reuse() {
        let mut buffer = Buffer::zeroed(8192);
        buffer.fill(0xaa);
        drop(buffer);
        assert!(Buffer::zeroed(8192).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_large_buffer_takes_little_more_than_its_length() {
        drop(Buffer::zeroed(POOLED_BYTES_MAX));
        for len in [POOLED_BYTES_MAX + 1, 17 << 20, 32 << 20] {
            let slice = Buffer::zeroed(len).freeze();
            assert!(slice.buffer.capacity >= len && slice.buffer.capacity < len + HUGE_PAGE_BYTES);
            assert!(!slice.is_wasteful() && slice.slice(0..len / 2 - 1).is_wasteful());
        }
    }

    #[test]
    fn the_pool_is_bounded() {
        let buffers: Vec<Buffer> = (0..32).map(|_| Buffer::zeroed(1 << 20)).collect();
        drop(buffers);
        POOL.with(|pool| assert!(pool.borrow().bytes <= POOL_BYTES_MAX));
    }
}
