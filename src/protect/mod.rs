//! A protection group: the disks that share one journal, and so one order of writes.

pub mod layers;
