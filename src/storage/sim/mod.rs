//! placeholder
#[derive(Debug)]
pub struct OpenDescription;
