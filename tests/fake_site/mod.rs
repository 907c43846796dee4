//! A site in memory, so that API and command line can be tested without a data path: it keeps names and numbers,
//! and real selectors choose real points, but no bytes.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use afterimage::block::TestId;
use afterimage::control::api;
use afterimage::control::backend::{Answer, Backend};
use afterimage::control::catalogue::{Catalogue, EventFilter};
use afterimage::control::jobs::Progress;
use afterimage::control::model::*;
use afterimage::control::name::{DiskPath, Label, Name};
use afterimage::control::retain::Retain;
use afterimage::control::selector::{self, PointSelector};
use afterimage::control::server::{self, ApiConnections, ApiLimits, Entrance};
use afterimage::control::tokens::Tokens;
use afterimage::env::OsEnvironment;
use afterimage::error::{Error, ErrorKind, Result};
use afterimage::format::ladder::Ladder;
use afterimage::listen::{SocketMode, bind_unix};
use afterimage::throttle::ByteRate;
use afterimage::units::{DiskId, GroupId, Lsn, PointId, SECTOR_BYTES, SectorCount, WallNanos};
use futures::FutureExt;
use tempfile::TempDir;
use tokio::sync::oneshot;

pub const NOON: WallNanos = WallNanos(1_795_262_400_000_000_000);
/// What its clock says.
const TEATIME: WallNanos = WallNanos(NOON.0 + 5 * 3_600_000_000_000);

#[derive(Default)]
pub struct FakeSite {
    groups: Mutex<BTreeMap<Name, FakeGroup>>,
    catalogue: Option<Catalogue>,
}

struct FakeGroup {
    group: Group,
    points: Vec<Point>,
    tests: BTreeMap<u64, Test>,
    tests_started: u64,
}

/// A group whose manifest cannot be read, and which no catalogue knows.
fn unknown(group: Group) -> Group {
    let reason = Reason {
        code: ReasonCode::NoKey,
        detail: "no site key is here".to_owned(),
        mend: "bring it".to_owned(),
    };
    let failure = Some(Failure { reason, since: NOON });
    Group { created: None, policy: None, retain: None, disks: None, failure, ..group }
}

fn missing(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, format!("no {what}"))
}

impl FakeSite {
    fn with<T>(&self, name: &Name, work: impl FnOnce(&mut FakeGroup) -> Result<T>) -> Answer<'static, T>
    where
        T: Send + 'static,
    {
        let mut groups = self.groups.lock().unwrap();
        let answer = groups.get_mut(name).ok_or_else(|| missing(format!("group {name}"))).and_then(work);
        futures::future::ready(answer).boxed()
    }

    fn add_disk(&self, path: DiskPath, size: SectorCount) -> Answer<'static, Disk> {
        self.with(&path.group.clone(), |group| {
            if group.disks().iter().any(|disk| disk.name == path.disk) {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("disk {path} exists")));
            }
            let disk = Disk {
                id: DiskId(group.disks().len() as u128 + 1),
                export: path.to_string(),
                uri: format!("nbd+unix:///{path}?socket=/x"),
                group: path.group,
                name: path.disk,
                size_bytes: size.bytes(),
                served: true,
                latched: None,
            };
            group.disks().push(disk.clone());
            Ok(disk)
        })
    }
}

impl FakeGroup {
    fn disks(&mut self) -> &mut Vec<Disk> {
        self.group.disks.as_mut().expect("its disks are known")
    }

    fn hold(&mut self, point: &PointSelector, held: bool) -> Result<Point> {
        let id = selector::resolve(point, &self.points, TEATIME)?.id;
        let point = self.points.iter_mut().find(|point| point.id == id).unwrap();
        point.held = held;
        Ok(point.clone())
    }
}

impl Backend for FakeSite {
    fn group_create(&self, request: GroupRequest) -> Answer<'_, Group> {
        let GroupRequest { name, points } = request;
        let mut groups = self.groups.lock().unwrap();
        if groups.contains_key(&name) {
            let error = Error::new(ErrorKind::AlreadyExists, format!("group {name} exists"));
            return futures::future::ready(Err(error)).boxed();
        }
        let group = Group {
            id: GroupId(groups.len() as u128 + 1),
            name: name.clone(),
            created: Some(NOON),
            policy: Some(Policy { interval_ms: if points { 1000 } else { 0 } }),
            retain: Some(Retain(Ladder::default())),
            disks: Some(Vec::new()),
            condition: None,
            latched_disks: 0,
            damage: None,
            failing: None,
            failure: None,
        };
        let group = if group.name.as_str() == "lost" { unknown(group) } else { group };
        let fake =
            FakeGroup { group: group.clone(), points: Vec::new(), tests: BTreeMap::new(), tests_started: 0 };
        groups.insert(name, fake);
        futures::future::ready(Ok(group)).boxed()
    }

    fn groups(&self) -> Answer<'_, Vec<Group>> {
        let groups = self.groups.lock().unwrap().values().map(|fake| fake.group.clone()).collect();
        futures::future::ready(Ok(groups)).boxed()
    }

    fn group(&self, name: Name) -> Answer<'_, Group> {
        self.with(&name, |fake| Ok(fake.group.clone()))
    }

    fn group_remove(&self, name: Name) -> Answer<'_, ()> {
        let removed = self.groups.lock().unwrap().remove(&name);
        futures::future::ready(removed.map(drop).ok_or_else(|| missing(format!("group {name}")))).boxed()
    }

    fn group_pause(&self, name: Name) -> Answer<'_, Group> {
        self.with(&name, |fake| Ok(fake.group.clone()))
    }

    fn events(&self, query: EventQuery) -> Answer<'_, Vec<Event>> {
        let event = Event {
            id: Some(1),
            time: NOON,
            group: query.group,
            group_id: Some(GroupId(1)),
            severity: Severity::Warning,
            code: "history_will_shrink".to_owned(),
            message: "history will shrink".to_owned(),
        };
        let count = query.limit.unwrap_or(EventQuery::LIMIT_DEFAULT);
        futures::future::ready(Ok(vec![event; usize::try_from(count).unwrap().min(2)])).boxed()
    }

    fn events_after(&self, query: EventQuery, wait: Duration) -> Answer<'_, EventPage> {
        let catalogue = self.catalogue.clone().expect("the catalogue");
        async move {
            let after = query.after.unwrap_or(0);
            let found = catalogue.events_after(after, EventFilter::default(), EventQuery::PAGE_MAX).await?;
            if found.events.is_empty() {
                // None comes.
                tokio::time::sleep(wait).await;
            }
            Ok(EventPage {
                catalogue: catalogue.id(),
                events: found.events,
                next: found.next,
                gap: found.gap,
            })
        }
        .boxed()
    }

    fn hooks(&self) -> Answer<'_, Vec<HookStatus>> {
        futures::future::ready(Ok(Vec::new())).boxed()
    }

    fn hook_test(&self, name: Name) -> Answer<'_, HookStatus> {
        futures::future::ready(Err(missing(format!("hook {name}")))).boxed()
    }

    /// Nothing ever happens.
    fn report(&self, group: Name, _: ReportQuery) -> Answer<'_, GroupReport> {
        self.with(&group, |fake| {
            Ok(GroupReport {
                group: fake.group.name.clone(),
                group_id: fake.group.id,
                from: NOON,
                to: TEATIME,
                span_ms: 300_000,
                retain: fake.group.retain.clone(),
                retain_ms: None,
                interval_ms: None,
                totals: ReportTotals::default(),
                spans: Vec::new(),
                points: Vec::new(),
            })
        })
    }

    fn catalogue(&self) -> Option<Catalogue> {
        self.catalogue.clone()
    }

    /// The group `stuck` has a latch that stays.
    fn group_resume(&self, name: Name, _request: ResumeRequest) -> Answer<'_, Resumed> {
        let latched = if name.as_str() == "stuck" { vec!["disk db: EIO".to_owned()] } else { Vec::new() };
        self.with(&name, |fake| {
            Ok(Resumed {
                group: fake.group.clone(),
                opened: false,
                unpaused: false,
                cleared: Vec::new(),
                latched,
            })
        })
    }

    fn disk_create(&self, path: DiskPath, size: SectorCount) -> Answer<'_, Disk> {
        self.add_disk(path, size)
    }

    fn disk_import(&self, path: DiskPath, file: PathBuf, progress: Progress) -> Answer<'_, Disk> {
        let length = match std::fs::metadata(&file) {
            Ok(metadata) => metadata.len(),
            Err(error) => {
                let error = Error::io("opening the file to import", error).at_path(&file);
                return futures::future::ready(Err(error)).boxed();
            }
        };
        progress.set_total(length);
        progress.advance(length);
        self.add_disk(path, SectorCount(length.div_ceil(SECTOR_BYTES)))
    }

    fn disk_resize(&self, path: DiskPath, size: SectorCount, lose_tail: bool) -> Answer<'_, Disk> {
        self.with(&path.group, |fake| {
            let found = fake.disks().iter_mut().find(|disk| disk.name == path.disk);
            let disk = found.ok_or_else(|| missing(format!("disk {path}")))?;
            if size.bytes() < disk.size_bytes && !lose_tail {
                return Err(Error::invalid("--yes-lose-tail"));
            }
            disk.size_bytes = size.bytes();
            Ok(disk.clone())
        })
    }

    fn disk_remove(&self, path: DiskPath) -> Answer<'_, ()> {
        self.with(&path.group, |fake| {
            let before = fake.disks().len();
            fake.disks().retain(|disk| disk.name != path.disk);
            if fake.disks().len() < before { Ok(()) } else { Err(missing(format!("disk {path}"))) }
        })
    }

    fn policy_set(&self, group: Name, policy: PolicyRequest) -> Answer<'_, Group> {
        self.with(&group, |fake| {
            if let Some(interval_ms) = policy.interval_ms {
                fake.group.policy = Some(Policy { interval_ms });
            }
            fake.group.retain = policy.retain.or(fake.group.retain.take());
            Ok(fake.group.clone())
        })
    }

    fn policy_dry_run(&self, group: Name, _: PolicyRequest) -> Answer<'_, PolicyForecast> {
        self.with(&group, |fake| Ok(PolicyForecast { points: fake.points.len() as u64, bytes_max: 4096 }))
    }

    fn point_hold(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.with(&group, |fake| fake.hold(&point, true))
    }

    fn point_release(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.with(&group, |fake| fake.hold(&point, false))
    }

    fn point_delete(&self, group: Name, point: PointSelector) -> Answer<'_, Point> {
        self.with(&group, |fake| {
            let id = selector::resolve(&point, &fake.points, TEATIME)?.id;
            let index = fake.points.iter().position(|point| point.id == id).unwrap();
            Ok(fake.points.remove(index))
        })
    }

    fn point_create(&self, group: Name, label: Option<Label>) -> Answer<'_, PointCreated> {
        self.with(&group, |fake| {
            let number = u64::try_from(fake.points.len()).unwrap() + 1;
            let point = Point {
                id: PointId((0xabcd_0000 + u128::from(number)) << 96),
                lsn: Lsn(number),
                time: WallNanos(NOON.0 + i64::try_from(number).unwrap() * 60_000_000_000),
                kind: PointKind::Crash,
                label: label.map(String::from),
                delta_bytes: 4096,
                held: false,
                lacks: Vec::new(),
            };
            let same_label =
                fake.points.iter().filter(|other| other.label.is_some() && other.label == point.label);
            let same_label = same_label.count() as u64;
            fake.points.push(point.clone());
            Ok(PointCreated { point, same_label })
        })
    }

    fn points(&self, group: Name) -> Answer<'_, Vec<Point>> {
        self.with(&group, |fake| Ok(fake.points.clone()))
    }

    fn test_start(&self, group: Name, request: TestRequest) -> Answer<'_, Test> {
        self.with(&group, |fake| {
            let point = selector::resolve(&request.point, &fake.points, TEATIME)?.clone();
            fake.tests_started += 1;
            let number = TestId(fake.tests_started);
            let exports: Vec<_> = fake
                .disks()
                .iter()
                .map(|disk| {
                    let path = DiskPath { group: disk.group.clone(), disk: disk.name.clone() };
                    TestExport {
                        disk: disk.name.clone(),
                        export: path.test_export(number),
                        uri: format!("nbd+unix:///{}?socket=/x", path.test_export(number)),
                        size_bytes: disk.size_bytes,
                    }
                })
                .collect();
            let test = Test {
                number,
                group: fake.group.name.clone(),
                exports,
                unserved: Vec::new(),
                // Somebody wrote to tests of labelled points.
                overlay_bytes: if point.label.is_some() { 512 } else { 0 },
                point,
                started: NOON,
                read_only: request.read_only || request.for_restore,
                for_restore: request.for_restore,
                connections: 0,
            };
            fake.tests.insert(number.0, test.clone());
            Ok(test)
        })
    }

    fn test_cleanup(&self, group: Name, test: Option<TestId>) -> Answer<'_, Vec<TestId>> {
        self.with(&group, |fake| match test {
            None => Ok(std::mem::take(&mut fake.tests).into_keys().map(TestId).collect()),
            Some(number) if fake.tests.remove(&number.0).is_some() => Ok(vec![number]),
            Some(number) => Err(missing(format!("test-{}", number.0))),
        })
    }

    fn tests(&self, group: Option<Name>) -> Answer<'_, Vec<Test>> {
        let groups = self.groups.lock().unwrap();
        let wanted = groups.iter().filter(|(name, _)| group.as_ref().is_none_or(|group| group == *name));
        let tests = wanted.flat_map(|(_, fake)| fake.tests.values().cloned()).collect();
        futures::future::ready(Ok(tests)).boxed()
    }

    fn restore(&self, group: Name, request: RestoreRequest, progress: Progress) -> Answer<'_, Restored> {
        self.with(&group, |fake| {
            let point = selector::resolve(&request.point, &fake.points, TEATIME)?.clone();
            let files: Vec<PathBuf> = fake
                .disks()
                .iter()
                .map(|disk| request.directory.join(format!("{}.raw", disk.name)))
                .collect();
            if let Some(file) = files.iter().find(|file| file.exists() && !request.overwrite) {
                return Err(Error::new(ErrorKind::AlreadyExists, "a file is there already").at_path(file));
            }
            for file in &files {
                std::fs::write(file, "restored")
                    .map_err(|error| Error::io("writing", error).at_path(file))?;
            }
            progress.set_total(8);
            progress.advance(8);
            Ok(Restored { point, files, bytes: 8 })
        })
    }

    fn keys(&self) -> Answer<'_, Keys> {
        let groups = self.groups.lock().unwrap();
        let seals = groups.keys().map(|group| GroupSeal {
            group: group.clone(),
            site_key: Some("5e".repeat(16)),
            generations: 1,
            has_key: true,
        });
        let keys = Keys {
            site_key: Some("5e".repeat(16)),
            file: PathBuf::from("/keys/site.key"),
            groups: seals.collect(),
        };
        futures::future::ready(Ok(keys)).boxed()
    }

    fn key_rotate(&self, _request: KeyRotation) -> Answer<'_, Keys> {
        self.keys()
    }

    fn key_export(&self) -> Answer<'_, KeyText> {
        futures::future::ready(Ok(KeyText { key: "the key\n".to_owned() })).boxed()
    }

    fn key_import(&self, request: KeyImport) -> Answer<'_, Keys> {
        if !request.replace {
            let error = Error::new(ErrorKind::AlreadyExists, "there is a site key already");
            return futures::future::ready(Err(error)).boxed();
        }
        self.keys()
    }

    fn status(&self) -> Answer<'_, Status> {
        let groups = self.groups.lock().unwrap();
        let status = Status {
            site: "fake".parse().unwrap(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: NOON,
            listen: vec!["unix:/x".to_owned()],
            tls: None,
            connections: 3,
            connections_limit: 64,
            turned_away: TurnedAway { clients: 2, newest: Some(NOON) },
            buffers_bytes: 4096,
            buffers_limit_bytes: 64 << 20,
            buffers_total_bytes: 1 << 20,
            buffers_total_limit_bytes: 1 << 30,
            buffers_waiting_ms: None,
            frames_total_bytes: 0,
            frames_total_limit_bytes: 512 << 20,
            api_connections: 0,
            api_connections_limit: 0,
            api_turned_away: TurnedAway::default(),
            descriptors: 40,
            descriptors_limit: Some(1024),
            event_counts: vec![EventCount { code: "paused".to_owned(), severity: Severity::Info, events: 2 }],
            hooks: Vec::new(),
            storage: StorageStatus {
                backend: "blocking".to_owned(),
                backend_reason: "io_uring_setup: EPERM".to_owned(),
                direct: false,
                direct_reason: Some("tmpfs has no O_DIRECT".to_owned()),
            },
            groups: groups.values().map(group_status).collect(),
        };
        futures::future::ready(Ok(status)).boxed()
    }

    fn vault_adopt(&self, request: AdoptRequest, _progress: Progress) -> Answer<'_, Adopted> {
        let name: Name = request.directory.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let created = self.group_create(GroupRequest { name, points: true });
        Box::pin(async move { created.await.map(|group| Adopted { group, lost: Vec::new() }) })
    }

    fn group_verify(
        &self,
        group: Name,
        rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, GroupVerified> {
        progress.advance(1);
        let fault = GroupFault {
            disk: "data".to_owned(),
            first_sector: 8,
            sectors: 1,
            message: "disk data, sectors 8..9: image /x at byte 4096 differs".to_owned(),
        };
        let faults = if group.as_str() == "broken" { vec![fault] } else { Vec::new() };
        let read_bytes = rate.map_or(0, |rate| rate.0.get());
        let report = GroupVerified {
            group,
            point: None,
            compared_bytes: 8192,
            newer_bytes: 512,
            read_bytes,
            faults,
            more_faults: 0,
            notes: vec!["disk new: the newest recovery point does not hold it".to_owned()],
        };
        futures::future::ready(Ok(report)).boxed()
    }

    fn vault_repair(
        &self,
        group: Name,
        request: RepairRequest,
        progress: Progress,
    ) -> Answer<'_, RepairReport> {
        progress.advance(1);
        let faults = match group.as_str() {
            "broken" => vec!["blob 12 does not match its checksum".to_owned()],
            _ => Vec::new(),
        };
        let report = RepairReport {
            group,
            faults,
            points: Vec::new(),
            renewed_bytes: 512,
            staying: 3,
            done: request.lose_points,
            point: None,
            left: Vec::new(),
        };
        futures::future::ready(Ok(report)).boxed()
    }

    fn vault_verify(
        &self,
        group: Option<Name>,
        _rate: Option<ByteRate>,
        progress: Progress,
    ) -> Answer<'_, VerifyReport> {
        progress.advance(1);
        let faults = match group {
            Some(group) if group.as_str() == "broken" => {
                vec!["blob 12 does not match its checksum".to_owned()]
            }
            _ => Vec::new(),
        };
        let report = VerifyReport {
            groups: 1,
            steps: 2,
            blobs: 3,
            bytes: 4096,
            base_bytes: 512,
            faults,
            warnings: Vec::new(),
            harmed: Vec::new(),
        };
        futures::future::ready(Ok(report)).boxed()
    }
}

fn group_status(fake: &FakeGroup) -> GroupStatus {
    let newest = fake.points.last();
    GroupStatus {
        group: fake.group.clone(),
        state: GroupState {
            condition: Condition::Latched,
            reason: Some(Reason {
                code: ReasonCode::JournalFailed,
                detail: "EIO on segment-3".to_owned(),
                mend: "mend the device".to_owned(),
            }),
            since: NOON,
        },
        lsn: Some(LsnLadder { submitted: Lsn(9), written: Lsn(8), visible: Lsn(7), ..LsnLadder::default() }),
        journal: Some(JournalStatus { used_bytes: 1 << 30, limit_bytes: 4 << 30 }),
        limits: None,
        newest_point: newest.map(|point| NewestPoint { id: point.id, time: point.time, age_ms: 1500 }),
        idle: false,
        late_since: Some(NOON),
        unprotected_ms: Some(3_000),
        writes_waiting_ms: Some(62_000),
        history: History {
            points: Some(u64::try_from(fake.points.len()).unwrap()),
            oldest: fake.points.first().map(|point| point.time),
            newest: newest.map(|point| point.time),
            span_ms: newest.map(|_| 3_720_000),
            retain_ms: Some(15 * 86_400_000),
            retention: None,
        },
        writes: WriteRate { writes_per_s: 1000.0, bytes_per_s: 4e6 },
        totals: Some(GroupTotals { writes: 5, written_bytes: 4096, ..GroupTotals::default() }),
        written_by_disk: Some(vec![DiskChurn { disk: "db".to_owned(), written_bytes: 4096 }]),
        written_per_byte: Some(2.414),
        churn: Some(Churn {
            since: NOON,
            written_bytes: 3 << 20,
            top_disk: Some(DiskChurn { disk: "db".to_owned(), written_bytes: 2 << 20 }),
            top_hour: Some(HourChurn { start: NOON, written_bytes: 1 << 20 }),
        }),
        connections: 3,
        verify: None,
    }
}

/// The API of a fake site on a real socket, in a thread of its own, until it is dropped.
pub struct Gateway {
    pub directory: TempDir,
    pub socket: PathBuf,
    /// By which it is only to read.
    #[allow(dead_code)]
    pub read_only_socket: PathBuf,
    /// Where it asks for tokens.
    #[allow(dead_code)]
    pub address: SocketAddr,
    #[allow(dead_code)]
    pub catalogue: Catalogue,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gateway {
    pub fn start() -> Gateway {
        Gateway::with_limits(ApiLimits::new(NonZeroUsize::new(64).unwrap()))
    }

    /// Starts one whose clients may take no more than that.
    pub fn with_limits(limits: ApiLimits) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let listener = bind_unix(&socket, SocketMode::Owner).unwrap();
        let read_only_socket = directory.path().join("read.sock");
        let read_only = bind_unix(&read_only_socket, SocketMode::Group).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let address = tcp.local_addr().unwrap();
        let tokens = directory.path().join("tokens.json");
        let (stop, stopped) = oneshot::channel();
        let (opened, catalogue) = std::sync::mpsc::channel();
        let path = directory.path().join("catalogue.sqlite");
        let thread = std::thread::spawn(move || {
            let environment = Arc::new(OsEnvironment::new());
            let connections = Arc::new(ApiConnections::new(limits, Arc::clone(&environment) as _));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (catalogue, _) = Catalogue::open(&path, &*environment).await.unwrap();
                opened.send(catalogue.clone()).unwrap();
                let site = FakeSite { groups: Mutex::default(), catalogue: Some(catalogue.clone()) };
                let tokens = Arc::new(Tokens::open(tokens, Arc::clone(&environment) as _));
                let router = api::router(Arc::new(site), Arc::clone(&connections), environment, tokens);
                let stopped = stopped.map(drop).shared();
                let with = || (router.clone(), Arc::clone(&connections), stopped.clone());
                let ((of, all, stop), (of2, all2, stop2), (of3, all3, stop3)) = (with(), with(), with());
                let (own, others, remote) = tokio::join!(
                    server::serve(listener, Entrance::Socket, of, all, stop),
                    server::serve(read_only, Entrance::ReadOnlySocket, of2, all2, stop2),
                    server::serve_tcp(tcp, Entrance::Tcp, of3, all3, stop3),
                );
                own.and(others).and(remote).unwrap();
                catalogue.close().await;
            });
        });
        let catalogue = catalogue.recv().expect("it opens");
        let (stop, thread) = (Some(stop), Some(thread));
        Gateway { directory, socket, read_only_socket, address, catalogue, stop, thread }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the API stops when it is told to");
        }
    }
}
