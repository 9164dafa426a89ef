//! Who has set a limit of a job.

/// The origin of a limit, as its error names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitOf {
    /// The operator, by an option of the worker or of `run`.
    #[default]
    Operator,
    /// The plugin, in its `[tool.casparian]`, where it may lower the operator's limits.
    Plugin,
}

impl LimitOf {
    /// Who has set `limit`, if `operators` is the operator's.
    pub fn new<T: PartialEq>(limit: T, operators: T) -> LimitOf {
        match limit == operators {
            true => LimitOf::Operator,
            false => LimitOf::Plugin,
        }
    }

    /// The option or setting `name` for an error.
    pub fn shown(self, name: &str) -> String {
        match self {
            LimitOf::Operator => format!("--{name}"),
            LimitOf::Plugin => format!("{name} of the plugin's [tool.casparian]"),
        }
    }
}
