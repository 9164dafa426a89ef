//! Every bound of the system, with its reason.
//!
//! A bound that an operator may change is an option whose default stands here.
