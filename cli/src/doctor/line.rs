//! One line of the doctor's: what was looked at, how it stands, and what mends it.

use serde::Serialize;

/// How something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// It works, though not as well as it could, or not for everybody.
    Warn,
    /// The SAN cannot be used because of it.
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What is, in one sentence.
    pub(super) text: String,
    /// What to type, or to do.
    pub(super) remedy: Option<String>,
}

impl Line {
    pub(super) fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Line {
            check,
            level: Level::Ok,
            text: text.into(),
            remedy: None,
        }
    }

    pub(super) fn warn<T: Into<String>, R: Into<String>>(
        check: &'static str,
        text: T,
        remedy: R,
    ) -> Self {
        Line {
            level: Level::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(check, text)
        }
    }

    pub(super) fn fail<T: Into<String>, R: Into<String>>(
        check: &'static str,
        text: T,
        remedy: R,
    ) -> Self {
        Line {
            level: Level::Fail,
            remedy: Some(remedy.into()),
            ..Self::ok(check, text)
        }
    }
}

impl Level {
    pub(super) fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        }
    }
}
