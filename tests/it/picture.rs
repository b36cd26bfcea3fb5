//! The picture of the dashboard's panels in docs/metrics.md, drawn from what a real Prometheus knows of three nodes. Made
//! anew by: cargo test --test it -- --ignored picture

use std::fmt::Write;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::kit::{Worker, until};
use crate::kube_proxy::Kube;
use crate::metrics::{Monitoring, panels};

const SECONDS: u64 = 120;
const COLOURS: [&str; 8] = ["#2563eb", "#d97706", "#16a34a", "#db2777", "#57534e", "#0891b2", "#7c3aed", "#65a30d"];

#[test]
#[ignore = "takes two minutes and writes docs/dashboard.svg"]
fn picture_of_the_dashboard() {
    let kubes: Vec<Kube> = (0..3).map(|_| Kube::never_run("")).collect();
    let textfile = |kube: &Kube| kube.node.directory.path().join("textfile");
    for kube in &kubes {
        fs::create_dir(textfile(kube)).unwrap();
        let crictl = kube.fake.join("crictl");
        let kube_proxy = format!("settle: 0s, min_interval: 0s, timeout: 2s, crictl: {}", crictl.display());
        kube.node.config(&format!("metrics: {{textfile: {}}}\nkube_proxy: {{{kube_proxy}}}", textfile(kube).display()));
        kube.node.fix(&[]).expect(0);
    }
    let directories: Vec<_> = kubes.iter().map(textfile).collect();
    let names = ["worker-1", "worker-2", "worker-3"];
    let nodes: Vec<_> = names.iter().copied().zip(directories.iter().map(|path| path.as_path())).collect();
    let monitoring = Monitoring::of(&nodes);
    until("Prometheus sees them", || monitoring.is_true("count(node_fixer_build_info) == 3"));

    // The first one has the timer alone, the others a watcher.
    let watch = |kube: &Kube| {
        let mut command = kube.node.command(&["watch", "--every", "2s"]);
        Watcher(kube.node.net.enter(|| command.spawn()).unwrap())
    };
    let watchers: Vec<Watcher> = kubes.iter().skip(1).map(watch).collect();
    let (begin, start) = (Instant::now(), unix());
    while begin.elapsed() < Duration::from_secs(SECONDS) {
        let second = begin.elapsed().as_secs();
        for (number, kube) in kubes.iter().enumerate() {
            go_wrong(&kube.node, number, second);
            if number == 0 {
                kube.node.fix(&[]);
            }
        }
        // The timer's minute is two seconds long.
        let tick = Duration::from_secs(2);
        std::thread::sleep(tick - Duration::from_nanos((begin.elapsed().as_nanos() % tick.as_nanos()) as u64));
    }
    let end = unix();
    drop(watchers);
    let mut svg = Svg::new(panels().len());
    for (number, (title, expression)) in panels().iter().enumerate() {
        let (start_at, end_at) = (format!("--start={start}"), format!("--end={end}"));
        let args = ["range", "-o", "json", &start_at, &end_at, "--step=1s", "http://127.0.0.1:9090", expression];
        let series = monitoring.ask(&args).unwrap();
        svg.panel(number, title, series.as_array().unwrap(), (start as f64, end as f64));
    }
    fs::write("docs/dashboard.svg", svg.end()).unwrap();
}

/// Ends with the picture.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What happens to the node with this number in this second.
fn go_wrong(node: &Worker, number: usize, second: u64) {
    match (number, second) {
        // Somebody deletes the default route again and again.
        (0, 20..60) => drop(node.net.ip("route del default table 2")),
        // A file of the distribution is applied now and then.
        (1, 40..50 | 80..84) => node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1"),
        // A table that nobody knows a gateway for, until it goes.
        (2, 50..52) => drop(node.net.ip("rule add priority 1536 from 10.0.1.102 lookup 7")),
        (2, 90..92) => drop(node.net.ip("rule del priority 1536 from 10.0.1.102 lookup 7")),
        // Uplinks come.
        (2, 30..32) => node.uplink_with_table(2),
        (1, 70..72) => node.uplink_with_table(2),
        _ => {}
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A picture of panels, two beside each other.
struct Svg(String);

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;

impl Svg {
    fn new(panels: usize) -> Svg {
        let (width, height) = (2.0 * WIDTH, HEIGHT * panels.div_ceil(2) as f64);
        Svg(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
        ))
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, fill: &str, text: &str) {
        writeln!(self.0, "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"{fill}\">{text}</text>")
            .unwrap();
    }

    /// Lines over time, from zero to a round number above the greatest value.
    fn panel(&mut self, number: usize, title: &str, series: &[Value], (start, end): (f64, f64)) {
        let (x0, y0) = (WIDTH * (number % 2) as f64, HEIGHT * (number / 2) as f64);
        let (left, right, top, bottom) = (x0 + 50.0, x0 + WIDTH - 20.0, y0 + 34.0, y0 + HEIGHT - 48.0);
        let points = |one: &Value| -> Vec<(f64, f64)> {
            let pair = |pair: &Value| {
                Some((pair[0].as_f64()?, pair[1].as_str()?.parse::<f64>().ok().filter(|it| it.is_finite())?))
            };
            one["values"].as_array().unwrap().iter().filter_map(pair).collect()
        };
        let greatest = series.iter().flat_map(points).map(|(_, value)| value).fold(0.0, f64::max);
        let magnitude = 10_f64.powf(greatest.max(1e-9).log10().floor());
        let high = [1.0, 2.0, 5.0, 10.0].map(|n| n * magnitude).into_iter().find(|high| *high >= greatest);
        let high = if greatest > 0.0 { high.unwrap() } else { 1.0 };
        self.text((left, y0 + 20.0), "start", "#292524", &format!("<tspan font-weight=\"bold\">{title}</tspan>"));
        for part in [0.0, 0.5, 1.0] {
            let y = bottom - (bottom - top) * part;
            writeln!(self.0, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#e7e5e4\"/>").unwrap();
            let value = (high * part * 1e6).round() / 1e6;
            self.text((left - 6.0, y + 4.0), "end", "#78716c", &value.to_string());
        }
        for seconds in (0..=(end - start) as u32).step_by(30) {
            let x = left + (right - left) * f64::from(seconds) / (end - start);
            self.text((x, bottom + 16.0), "middle", "#78716c", &format!("{seconds} s"));
        }
        let mut legend = left;
        for (one, colour) in series.iter().zip(COLOURS) {
            let mut path = String::new();
            let mut before = f64::NEG_INFINITY;
            for (time, value) in points(one) {
                let (x, y) =
                    (left + (right - left) * (time - start) / (end - start), bottom - (bottom - top) * value / high);
                // A line ends where there are no samples.
                let step = if time - before > 1.5 { 'M' } else { 'L' };
                before = time;
                write!(path, "{step}{x:.1} {y:.1}").unwrap();
            }
            writeln!(self.0, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>").unwrap();
            let labels = one["metric"].as_object().unwrap();
            let name = ["reconciler", "instance", "version"].iter().find_map(|label| labels.get(*label)?.as_str());
            let name = name.unwrap_or("all");
            self.text((legend, bottom + 34.0), "start", colour, name);
            legend += 16.0 + 7.0 * name.len() as f64;
        }
    }

    fn end(self) -> String {
        self.0 + "</svg>\n"
    }
}
