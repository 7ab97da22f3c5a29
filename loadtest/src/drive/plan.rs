//! What is sent to whom: arrivals spread over tenants and functions.

use crate::load::{Arrival, Rates, Spacing, Target, Zipf};
use anyhow::{Context, ensure};
use hyper::Method;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

pub const FUNCTIONS_MAX: usize = 10_000;
pub const TENANTS_MAX: usize = 1000;

/// Who sends requests, and the token that is good for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Tenant {
    pub name: String,
    pub token: String,
}

/// Without the token.
impl std::fmt::Debug for Tenant {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.name)
    }
}

/// What one arrival is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// A request to the function, through the gateway
    Requests,
    /// A start of one more instance; those of one moment and function are asked for together
    Starts,
}

/// When something arrives.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// So many at once.
    AtOnce(usize),
    Over(Rates),
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub when: When,
    pub spacing: Spacing,
    pub seed: u64,
    pub what: What,
    pub tenants: Vec<Tenant>,
    /// The most popular first. Each tenant has all of them.
    pub functions: Vec<String>,
    pub zipf: f64,
    /// Of requests.
    pub path: String,
}

impl Plan {
    /// All that is to be sent, in the order of time: the same for the same seed.
    pub fn lay_out(&self) -> anyhow::Result<(Vec<Target>, Vec<Arrival>)> {
        ensure!(self.functions.len() <= FUNCTIONS_MAX, "use at most {FUNCTIONS_MAX} functions");
        ensure!(self.path.starts_with('/'), "the path {:?} must begin with /", self.path);
        let mut random = StdRng::seed_from_u64(self.seed);
        let zipf = Zipf::new(self.functions.len(), self.zipf).context("choose functions")?;
        let times = match &self.when {
            When::AtOnce(count) => vec![Duration::ZERO; *count],
            When::Over(rates) => rates.arrivals(self.spacing, &mut random),
        };
        let drawn = times.into_iter().map(|at| {
            let tenant = match self.tenants.len() {
                1 => 0,
                count => random.random_range(0..count),
            };
            (at, (tenant, zipf.choose(&mut random)))
        });
        let mut wanted: Vec<(Duration, (usize, usize), usize)> = Vec::new();
        match self.what {
            What::Requests => wanted.extend(drawn.map(|(at, whom)| (at, whom, 1))),
            What::Starts => {
                let mut together: BTreeMap<(Duration, (usize, usize)), usize> = BTreeMap::new();
                drawn.for_each(|key| *together.entry(key).or_default() += 1);
                wanted.extend(together.into_iter().map(|((at, whom), count)| (at, whom, count)));
            }
        }
        let (mut targets, mut places) = (Vec::new(), BTreeMap::new());
        let arrivals = wanted.into_iter().map(|(at, whom, count)| {
            let target = *places.entry((whom, count)).or_insert_with(|| {
                targets.push(self.target(whom, count));
                targets.len() - 1
            });
            Arrival { at, target }
        });
        let arrivals = arrivals.collect();
        Ok((targets, arrivals))
    }

    fn target(&self, (tenant, function): (usize, usize), count: usize) -> Target {
        let (Tenant { name, token }, function) = (&self.tenants[tenant], &self.functions[function]);
        match self.what {
            What::Requests => Target::get(format!("/fn/{function}{}", self.path), token, name),
            What::Starts => Target {
                method: Method::POST,
                body: format!("{{\"count\":{count}}}"),
                ..Target::get(format!("/v1/functions/{function}/starts"), token, name)
            },
        }
    }
}

/// One tenant in each line, and behind it its token, or nothing where the given token is good for it.
pub fn tenants(path: &Path, token: &str) -> anyhow::Result<Vec<Tenant>> {
    let text = fs::read_to_string(path).with_context(|| format!("read the tenants in {}", path.display()))?;
    let mut tenants: Vec<Tenant> = Vec::new();
    let lines = text.lines().enumerate().map(|(place, line)| (place + 1, line.trim()));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let what = |reason: &str| format!("{} line {number}: {reason}", path.display());
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().to_owned();
        let token = words.next().unwrap_or(token).to_owned();
        ensure!(words.next().is_none(), what("a line is a tenant and its token"));
        ensure!(!token.is_empty(), what("there is no token, neither here nor in FAASNET_TOKEN"));
        ensure!(tenants.iter().all(|other| other.name != name), what("this tenant is there twice"));
        ensure!(tenants.len() < TENANTS_MAX, what("these are too many tenants"));
        tenants.push(Tenant { name, token });
    }
    ensure!(!tenants.is_empty(), "{} names no tenant", path.display());
    Ok(tenants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Piece;

    fn plan(what: What, when: When) -> Plan {
        let tenant = |name: &str| Tenant { name: name.into(), token: format!("token-of-{name}") };
        Plan {
            when,
            spacing: Spacing::Even,
            seed: 1,
            what,
            tenants: vec![tenant("a"), tenant("b")],
            functions: ["one", "two", "three"].map(str::to_owned).to_vec(),
            zipf: 1.0,
            path: "/sleep?ms=5".into(),
        }
    }

    #[test]
    fn requests_go_to_tenants_alike_and_to_functions_by_their_rank() {
        let rates = Rates(vec![Piece { from: 100.0, to: 100.0, length: Duration::from_secs(60) }]);
        let plan = plan(What::Requests, When::Over(rates));
        let (targets, arrivals) = plan.lay_out().unwrap();
        assert_eq!((targets.len(), arrivals.len()), (6, 6000));
        let share = |part: &str| {
            let of = |arrival: &&Arrival| format!("{:?}", targets[arrival.target]).contains(part);
            arrivals.iter().filter(of).count() as f64 / 6000.0
        };
        assert!((share(" of a") - 0.5).abs() < 0.03);
        // 1, 1/2, 1/3 of 11/6.
        for (function, expected) in
            [("/fn/one/sleep?ms=5", 0.545), ("/fn/two/", 0.273), ("/fn/three/", 0.182)]
        {
            assert!((share(function) - expected).abs() < 0.03, "{function}: {}", share(function));
        }
        assert_eq!(plan.lay_out().unwrap().1, arrivals, "the same seed, the same arrivals");
        assert!(targets.iter().all(|target| target.token == format!("token-of-{}", target.tenant)));
        assert!(!format!("{targets:?} {plan:?}").contains("token-of"), "tokens are not printed");
    }

    #[test]
    fn starts_of_one_moment_are_one_request_for_each_function_and_none_is_lost() {
        let (targets, arrivals) = plan(What::Starts, When::AtOnce(1000)).lay_out().unwrap();
        assert_eq!(arrivals.len(), 6);
        let count = |arrival: &Arrival| {
            let body: serde_json::Value = serde_json::from_str(&targets[arrival.target].body).unwrap();
            body["count"].as_u64().unwrap()
        };
        assert_eq!(arrivals.iter().map(count).sum::<u64>(), 1000);
        assert!(targets.iter().all(|target| target.method == Method::POST));
    }

    #[test]
    fn tenants_come_from_a_file_with_their_tokens() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str, token: &str| {
            fs::write(file.path(), text).unwrap();
            tenants(file.path(), token)
        };
        let two = read("# ours\nteam-a secret\n\nteam-b\n", "given").unwrap();
        let pairs: Vec<_> = two.iter().map(|tenant| (tenant.name.as_str(), tenant.token.as_str())).collect();
        assert_eq!(pairs, [("team-a", "secret"), ("team-b", "given")]);
        for (text, said) in [
            ("", "names no tenant"),
            ("a\n", "line 1: there is no token"),
            ("a b c\n", "line 1: a line is a tenant and its token"),
            ("a x\na y\n", "line 2: this tenant is there twice"),
        ] {
            let complaint = format!("{:#}", read(text, "").unwrap_err());
            assert!(complaint.contains(said) && !complaint.contains(" x"), "{text:?}: {complaint}");
        }
    }
}
