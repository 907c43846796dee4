//! Failover. So far: the test failover, which serves a point beside ongoing protection.

mod backing;
mod test_failover;

pub use test_failover::{TestDisk, TestFailover, TestFailovers, TestListedDisk, TestListing};
