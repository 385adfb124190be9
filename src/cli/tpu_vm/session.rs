//! One TPU VM that a verb is about.

use std::fs::File;
use std::time::Duration;

use super::args::{Reach, Target};
use super::{Console, Result, usage};
use crate::tpu_vm::{self, Gcloud, Job, Limits, Record, Route, Verbs, Vm};

/// One TPU VM, and where what it does is said.
pub(super) struct Session<'a> {
    pub vm: Vm,
    pub dry_run: bool,
    pub console: &'a Console,
    pub record: Record,
}

impl<'a> Session<'a> {
    pub fn new(target: &Target, reach: Option<&Reach>, console: &'a Console) -> Result<Self> {
        let from_environment = || std::env::var("CLOUDSDK_COMPUTE_ZONE").ok().filter(|zone| !zone.is_empty());
        let zone = target.zone.clone().or_else(from_environment);
        let zone = zone.ok_or_else(|| usage("--zone is missing, such as --zone europe-west4-a"))?;
        // It becomes a folder's name, too.
        if zone.is_empty() || !zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(usage(&format!("--zone {zone}: expected a zone, such as europe-west4-a")));
        }
        let limits = reach.map_or(Limits { connect: 10, keepalive: 30 }, |reach| Limits {
            connect: reach.connect_timeout,
            keepalive: reach.keepalive,
        });
        let route = match reach {
            Some(reach) if reach.internal_ip => Route::Internal,
            Some(reach) if reach.tunnel_through_iap => Route::Tunnel,
            _ => Route::Public,
        };
        let record = Record::of(&zone, &target.name)?;
        let project = match (record.read()?.project, target.project.clone()) {
            // Of the same name and zone; a watch would delete the other one's.
            (Some(known), Some(given)) if known != given => {
                let name = &target.name;
                return Err(usage(&format!(
                    "--project {given}: {name} in {zone} was begun in {known} from here: delete it there, or choose another name"
                )));
            }
            (known, given) => given.or(known),
        };
        let flags = reach.map(|reach| reach.flags.clone()).unwrap_or_default();
        let vm = Vm { name: target.name.clone(), zone, project, flags, route, limits };
        Ok(Self { vm, dry_run: target.dry_run, console, record })
    }

    /// Lends the verbs.
    pub fn verbs<T>(&self, then: impl FnOnce(&Verbs<'_>) -> tpu_vm::Result<T>) -> Result<T> {
        self.verbs_after("", then)
    }

    /// Lends the verbs; a dry run's commands stand after this.
    pub fn verbs_after<T>(
        &self,
        prefix: &str,
        then: impl FnOnce(&Verbs<'_>) -> tpu_vm::Result<T>,
    ) -> Result<T> {
        let print = |line: &str| _ = self.console.print(&format!("{prefix}{line}\n"));
        let note = |line: &str| self.note(line);
        let gcloud = Gcloud { dry_run: self.dry_run.then_some(&print), is_quiet: false, lock: None };
        let patience = Duration::from_secs(120);
        Ok(then(&Verbs { vm: &self.vm, gcloud: &gcloud, note: &note, patience })?)
    }

    /// For what a watch would undo, or what a command would that has outlived one. Both wait until the file is closed.
    pub fn alone(&self) -> Result<Option<[File; 2]>> {
        if self.dry_run || !self.record.is_known() {
            return Ok(None);
        }
        let watched = || tpu_vm::Error::Watched { name: self.vm.name.clone() };
        let watch = self.record.lock_watch()?.ok_or_else(watched)?;
        Ok(Some([watch, self.record.wait_for_commands(&|line| self.note(line))?]))
    }

    pub fn note(&self, line: &str) {
        self.console.note(&format!("{}: {line}", self.vm.name));
    }

    /// Asks gcloud for its project, so that a setting that is changed meanwhile leads to no other one.
    pub fn pin_project(&mut self) -> Result<()> {
        if self.vm.project.is_none() && !self.dry_run {
            self.vm.project = self.verbs(|verbs| verbs.project())?;
        }
        Ok(())
    }

    /// Keeps what was done for a watch.
    pub fn keep(&self, change: impl FnOnce(&mut Job)) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let project = self.vm.project.clone();
        Ok(self.record.change(|job| {
            job.project = project;
            change(job);
        })?)
    }
}
