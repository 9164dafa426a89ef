//! Casparian: runs a data team's Python plugins over their files and gives them Parquet.

pub mod limits;
pub mod reactor;
pub mod zmtp;
