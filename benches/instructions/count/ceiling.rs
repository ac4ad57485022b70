//! The checked-in ceilings: what may not be exceeded.
//!
//! A line has four words: layer, subject, component, instructions. `#` begins a comment. The component `ours` is our binary as a
//! whole, `calls` are system calls.

/// One ceiling.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// `provider` or `switch`.
    pub layer: String,
    /// What was done, as `message-64`.
    pub subject: String,
    /// A component's name, `ours` or `calls`.
    pub component: String,
    /// As many are allowed.
    pub most: f64,
}

/// How a figure stands to its ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// More than is allowed.
    Above,
    /// As it should be.
    Fits,
    /// More than a twentieth below: the ceiling ought to be lowered.
    FarBelow,
}

impl Ceiling {
    /// Reads a file of them.
    ///
    /// # Errors
    /// A sentence that names the line.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let lines = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or(""));
        lines
            .filter(|line| !line.trim().is_empty())
            .map(Self::parse)
            .collect()
    }

    fn parse(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [layer, subject, component, most] = words[..] else {
            return Err(format!("not four words: {line}"));
        };
        let most = most
            .parse()
            .map_err(|_| format!("no number at the end: {line}"))?;
        let [layer, subject, component] = [layer, subject, component].map(String::from);
        Ok(Self {
            layer,
            subject,
            component,
            most,
        })
    }

    /// How a figure stands to it.
    #[must_use]
    pub fn standing(&self, figure: f64) -> Standing {
        match figure {
            _ if figure > self.most => Standing::Above,
            _ if figure < self.most * 0.95 - 1.0 => Standing::FarBelow,
            _ => Standing::Fits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_ceilings() {
        let text = "# layer subject component most\n\nprovider message-64 ours 400 # by law\n";
        let ceilings = Ceiling::parse_all(text).unwrap();
        assert_eq!(ceilings.len(), 1);
        assert_eq!(
            (ceilings[0].component.as_str(), ceilings[0].most),
            ("ours", 400.0)
        );
        assert!(Ceiling::parse_all("provider message-64 400").is_err());
        assert!(Ceiling::parse_all("provider message-64 ours many").is_err());
    }

    #[test]
    fn more_is_above_and_much_less_is_far_below() {
        let ceiling = &Ceiling::parse_all("a b c 400").unwrap()[0];
        assert_eq!(ceiling.standing(400.5), Standing::Above);
        assert_eq!(ceiling.standing(400.0), Standing::Fits);
        assert_eq!(ceiling.standing(380.0), Standing::Fits);
        assert_eq!(ceiling.standing(370.0), Standing::FarBelow);
    }
}
