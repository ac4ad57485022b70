//! Reads what callgrind writes: the instructions and system calls of each function itself, without what it calls.
//!
//! Names must be written out (`--compress-strings=no`), and system calls counted (`--collect-systime=yes`). Lines of the source do not matter here, so neither do the files
//! that inlined code comes from.

use std::collections::HashMap;

use crate::component::{Component, Cost};

/// A function: the file that it was loaded from, and its demangled name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Function {
    /// The file that it was loaded from.
    pub object: String,
    /// Its demangled name.
    pub name: String,
}

/// What a function itself costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Own {
    /// Instructions.
    pub instructions: f64,
    /// System calls.
    pub calls: f64,
}

/// What each function itself costs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile(pub HashMap<Function, Own>);

/// These read the clock without a system call, but not under valgrind.
const CLOCKS: [&str; 2] = ["clock_gettime", "gettimeofday"];

impl Profile {
    /// Reads one dump.
    ///
    /// # Errors
    /// A sentence, when a line of costs has no number, or costs come before a function.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut costs: HashMap<Function, Own> = HashMap::new();
        let (mut object, mut function) = (String::new(), None);
        let mut of_a_call = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("ob=") {
                name.clone_into(&mut object);
            } else if let Some(name) = line.strip_prefix("fn=") {
                let object = object.clone();
                let name = without_cycle(name).to_owned();
                function = Some(Function { object, name });
            } else if line.starts_with("calls=") {
                of_a_call = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
                // The line after `calls=` has the cost of the callee.
                if std::mem::take(&mut of_a_call) {
                    continue;
                }
                let own = Own::parse(line)?;
                let function = function
                    .as_ref()
                    .ok_or_else(|| format!("of no function: {line}"))?;
                match costs.get_mut(function) {
                    Some(sum) => sum.add(own, 1.0),
                    None => drop(costs.insert(function.clone(), own)),
                }
            }
        }
        Ok(Self(costs))
    }

    /// What this one has more than another, each divided by `by`: what one of `by` repetitions costs.
    #[must_use]
    pub fn more_than(&self, other: &Self, by: f64) -> Self {
        let mut costs = self.0.clone();
        for (function, own) in &other.0 {
            costs.entry(function.clone()).or_default().add(*own, -1.0);
        }
        costs.retain(|_, own| *own != Own::default());
        for own in costs.values_mut() {
            own.instructions /= by;
            own.calls /= by;
        }
        Self(costs)
    }

    /// All the system calls, without those that are none outside valgrind.
    #[must_use]
    pub fn calls(&self) -> f64 {
        let real = |f: &Function| {
            let name = f.name.rsplit("::").next().unwrap_or(&f.name);
            !CLOCKS
                .iter()
                .any(|clock| name.trim_start_matches('_').starts_with(clock))
        };
        self.0
            .iter()
            .filter(|(f, _)| real(f))
            .map(|(_, own)| own.calls)
            .sum()
    }

    /// Instructions by component; `program` is the file name of our binary.
    #[must_use]
    pub fn by_component(&self, program: &str) -> Cost {
        let mut sum = Cost::default();
        for (function, own) in &self.0 {
            let component = Component::of(&function.object, &function.name, program);
            *sum.0.entry(component).or_default() += own.instructions;
        }
        sum
    }

    /// The functions of our binary that cost most.
    #[must_use]
    pub fn top(&self, program: &str, count: usize) -> Vec<(Component, &str, f64)> {
        let mut ours: Vec<_> = self
            .0
            .iter()
            .map(|(f, own)| {
                (
                    Component::of(&f.object, &f.name, program),
                    f.name.as_str(),
                    own.instructions,
                )
            })
            .filter(|(component, _, _)| Component::OURS.contains(component))
            .collect();
        ours.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(b.1)));
        ours.truncate(count);
        ours
    }
}

impl Own {
    /// Of a line: where, instructions, system calls, their time. What is 0 at the end may be left out.
    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_ascii_whitespace().skip(1).map(str::parse);
        let mut next = || words.next().unwrap_or(Ok(0.0));
        match (next(), next()) {
            (Ok(instructions), Ok(calls)) => Ok(Self {
                instructions,
                calls,
            }),
            _ => Err(format!("no line of costs: {line}")),
        }
    }

    fn add(&mut self, other: Self, times: f64) {
        self.instructions += other.instructions * times;
        self.calls += other.calls * times;
    }
}

/// Functions that call themselves, by way of others, are told apart by a number: `name'2`.
fn without_cycle(name: &str) -> &str {
    match name.rsplit_once('\'') {
        Some((plain, number)) if number.bytes().all(|b| b.is_ascii_digit()) => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir sysCount sysTime
summary: 1000

ob=/x/instructions
fl=/src/a.rs
fn=san_provider::a
16 3
fi=/src/inlined.rs
17 4
cob=/lib/libc.so.6
cfl=???
cfn=memcpy
calls=2 0
16 500

fn=san_provider::a'2
1 1

ob=/lib/libc.so.6
fl=???
fn=memcpy
0 500
fn=poll
7 3 2 900
fn=clock_gettime
0 5 1 10

totals: 516 3 910
";

    fn function(object: &str, name: &str) -> Function {
        Function {
            object: object.into(),
            name: name.into(),
        }
    }

    fn own(instructions: f64, calls: f64) -> Own {
        Own {
            instructions,
            calls,
        }
    }

    #[test]
    fn calls_are_not_counted_where_they_are_made() {
        let profile = Profile::parse(DUMP).unwrap();
        let a = function("/x/instructions", "san_provider::a");
        assert_eq!(profile.0[&a], own(8.0, 0.0));
        let memcpy = function("/lib/libc.so.6", "memcpy");
        assert_eq!(profile.0[&memcpy], own(500.0, 0.0));
        let cost = profile.by_component("instructions");
        let both = (cost.of(Component::Provider), cost.of(Component::Libc));
        assert_eq!(both, (8.0, 508.0));
        assert_eq!(cost.sum(&Component::OURS), 8.0);
        let top = profile.top("instructions", 5);
        assert_eq!(top, [(Component::Provider, "san_provider::a", 8.0)]);
    }

    #[test]
    fn to_read_the_clock_is_no_system_call() {
        assert_eq!(Profile::parse(DUMP).unwrap().calls(), 2.0);
    }

    #[test]
    fn a_difference_is_divided() {
        let long = Profile::parse(DUMP).unwrap();
        let short = "ob=/lib/libc.so.6\nfn=memcpy\n0 100\nfn=open\n0 8 1\n";
        let each = long.more_than(&Profile::parse(short).unwrap(), 4.0);
        let of = |name| each.0[&function("/lib/libc.so.6", name)];
        assert_eq!(of("memcpy"), own(100.0, 0.0));
        assert_eq!(of("open"), own(-2.0, -0.25));
        assert!(long.more_than(&long, 1.0).0.is_empty());
    }

    #[test]
    fn what_is_no_dump_is_an_error() {
        assert!(Profile::parse("12 13\n").is_err());
        assert!(Profile::parse("fn=a\n12 b\n").is_err());
    }
}
