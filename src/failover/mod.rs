//! Failover. So far: the test failover, which serves a point beside ongoing protection.

mod backing;
mod test_failover;
mod verify;

pub use test_failover::{
    TestDisk, TestFailover, TestFailovers, TestListedDisk, TestListing, TestTrouble, Unserved,
};
pub use verify::{TestFault, TestsReport};
