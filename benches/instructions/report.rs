//! What was counted, as a table, as JSON, as a profile, and against the ceilings.

use std::fmt::Write as _;

use san_benches::Result;
use san_benches::record::table;
use san_instructions::callgrind::Profile;
use san_instructions::ceiling::{Ceiling, Standing};
use san_instructions::component::{Component, Cost};
use serde::Serialize;

use crate::watch::Counted;

/// How many functions a profile shows.
const SHOWN: usize = 40;

/// All that was counted.
#[derive(Debug)]
pub(crate) struct Counts {
    /// The file name of our binary.
    program: String,
    rows: Vec<Row>,
}

/// What one repetition costs one end.
#[derive(Debug, Serialize)]
struct Row {
    /// `provider`, `switch` or `rsockets`.
    layer: String,
    /// As `message-64`; of a connect, the accepting end is another: `accept`.
    subject: String,
    /// Instructions.
    cost: Cost,
    /// System calls.
    calls: f64,
}

impl Row {
    /// What rsockets have in component of our binary is librdmacm.
    fn ours(&self) -> f64 {
        match self.layer.as_str() {
            "rsockets" => self.cost.of(Component::Librdmacm),
            _ => self.cost.sum(&Component::OURS),
        }
    }

    fn figure(&self, component: &str) -> Option<f64> {
        match component {
            "ours" => Some(self.ours()),
            "calls" => Some(self.calls),
            _ => {
                let component = Component::ALL.into_iter().find(|p| p.name() == component)?;
                Some(self.cost.of(component))
            }
        }
    }
}

impl Counts {
    pub(crate) fn new() -> Result<Self> {
        let exe = std::env::current_exe()?;
        let program = exe.file_name().ok_or("a program without a name")?;
        Ok(Self {
            program: program.to_string_lossy().into_owned(),
            rows: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, layer: &str, counted: &[Counted]) {
        for one in counted {
            let mut row = |subject: String, each: &Profile| {
                self.rows.push(Row {
                    layer: layer.into(),
                    subject,
                    cost: each.by_component(&self.program),
                    calls: each.calls(),
                });
            };
            row(one.subject.name(), &one.client);
            if one.subject == crate::Subject::Connect {
                row("accept".into(), &one.server);
            }
        }
    }

    pub(crate) fn table(&self) -> String {
        let mut heads = vec!["Each", "Ours"];
        heads.extend(Component::ALL.map(Component::name));
        heads.extend(["All", "System calls"]);
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![format!("{}: {}", row.layer, row.subject)];
            cells.push(format!("{:.0}", row.ours()));
            cells.extend(Component::ALL.map(|component| format!("{:.0}", row.cost.of(component))));
            cells.push(format!("{:.0}", row.cost.sum(&Component::ALL)));
            cells.push(format!("{:.2}", row.calls));
            cells
        });
        table(&heads, rows.collect())
    }

    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.rows)? + "\n")
    }

    pub(crate) fn print_profile(&self, layer: &str, counted: &[Counted]) {
        for one in counted {
            self.print_top(&format!("{layer}: {}", one.subject.name()), &one.client);
            if one.subject == crate::Subject::Connect {
                self.print_top(&format!("{layer}: accept"), &one.server);
            }
        }
    }

    fn print_top(&self, what: &str, each: &Profile) {
        println!("{what}: the functions of our binary that cost most, each itself");
        for (component, name, cost) in each.top(&self.program, SHOWN) {
            println!("{cost:>9.1}  {:<10}  {name}", component.name());
        }
        println!();
    }

    /// Whether no ceiling is exceeded.
    pub(crate) fn check(&self, ceilings: &str) -> Result<bool> {
        let mut fits = true;
        let mut said = String::new();
        for ceiling in Ceiling::parse_all(ceilings)? {
            let Ceiling {
                layer,
                subject,
                component,
                most,
            } = &ceiling;
            let found = self
                .rows
                .iter()
                .find(|row| row.layer == *layer && row.subject == *subject);
            let what = format!("{layer} {subject} {component}");
            let Some(figure) = found.and_then(|row| row.figure(component)) else {
                fits = false;
                let _ = writeln!(said, "ceiling: {what}: was not counted");
                continue;
            };
            let figures = format!("{figure:.1}, the ceiling is {most}");
            match ceiling.standing(figure) {
                Standing::Above => {
                    fits = false;
                    let _ = writeln!(said, "ceiling: {what}: EXCEEDED: {figures}");
                }
                Standing::FarBelow => {
                    let _ = writeln!(said, "ceiling: {what}: can be lowered: {figures}");
                }
                Standing::Fits => {}
            }
        }
        print!("{said}");
        Ok(fits)
    }
}
