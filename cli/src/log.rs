//! What is logged: `SAN_LOG`, read in such a way that a wrong word is said.

use tracing_subscriber::EnvFilter;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The beginnings of the names of modules that log.
const MODULES: [&str; 4] = ["san", "soft_roce", "verbs_shim", "switch_tokio"];
const ALLOWED: &str = "must be error, warn, info, debug, trace or off, or such words for single modules: \
    san_switch=debug,soft_roce=info";

/// The filter that `text` asks for, and what is wrong with it. What cannot be used is left out; without a text,
/// errors are logged.
pub(crate) fn filter(text: Option<&str>) -> (EnvFilter, Vec<String>) {
    let mut wrong = Vec::new();
    let good: Vec<&str> = text
        .unwrap_or_default()
        .split(',')
        .filter(|word| !word.is_empty())
        .filter(|word| {
            let is_good = is_level_or_module(word) && word.parse::<EnvFilter>().is_ok();
            if !is_good {
                wrong.push(format!("SAN_LOG has '{word}', but {ALLOWED}"));
            }
            is_good
        })
        .collect();
    (EnvFilter::new(good.join(",")), wrong)
}

/// The filter takes any other word for the name of a module, and then logs nothing of ours.
fn is_level_or_module(word: &str) -> bool {
    let name = word.split(['=', '[']).next().unwrap_or_default();
    let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let is_number = matches!(word.parse(), Ok(0..=5));
    let is_module = MODULES.iter().any(|module| name.starts_with(module));
    // `[connect]=debug` is a span of any module.
    is_level || is_number || is_module || name.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_and_no_module_is_said_and_left_out() {
        let read = |text| {
            let (filter, wrong) = filter(text);
            (filter.to_string(), wrong.len())
        };
        assert_eq!(read(None), ("error".to_owned(), 0));
        assert_eq!(read(Some("")), ("error".to_owned(), 0));
        assert_eq!(read(Some("DEBUG")), ("debug".to_owned(), 0));
        assert_eq!(
            read(Some("san_switch=debug")),
            ("san_switch=debug".to_owned(), 0)
        );
        assert_eq!(read(Some("degub")), ("error".to_owned(), 1));
        assert_eq!(read(Some("san=loud,warn")), ("warn".to_owned(), 1));
        let (_, wrong) = filter(Some("degub"));
        assert!(wrong[0].contains("'degub'") && wrong[0].contains("debug, trace"));
    }
}
