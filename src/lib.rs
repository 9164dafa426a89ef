//! Casparian: runs a data team's Python plugins over their files and gives them Parquet.

pub mod limits;
pub mod protocol;
pub mod reactor;
pub mod socket;
pub mod zmtp;
