"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const figures = [...document.querySelectorAll(".chart")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const control = (id) => document.getElementById(id);
  const LIGHT = ["#2056b3", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#0e7490", "#be123c", "#475569"];
  const DARK = ["#8ab4ff", "#fdba74", "#86efac", "#d8b4fe", "#fde047", "#67e8f9", "#fda4af", "#cbd5e1"];
  const WHOLE = [...Array(10).keys()].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
  let charts = [];

  const steps = [...document.querySelectorAll("#sample-steps input")];
  const hurting = ["hurt-what", "hurt-source"].map(control).filter(Boolean);

  // What the reader has chosen survives the next reading of the page; a file opened from a disk may have no storage
  const KEY = "sftcore-report";
  const chosen = (() => { try { return JSON.parse(sessionStorage.getItem(KEY)) || {}; } catch { return {}; } })();
  const remember = () => {
    const now = { smoothing: control("smoothing").value, log: control("log").checked, theme: control("theme").value,
      steps: steps.map((box) => box.checked), hurting: hurting.map((one) => one.value),
      follow: control("follow") ? control("follow").checked : true, y: scrollY };
    try { sessionStorage.setItem(KEY, JSON.stringify(now)); } catch { /* nothing is kept */ }
  };

  const smoothed = (values, weight) => {
    let last = 0, total = 0;
    return values.map((value) => {
      last = weight * last + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return last / total; // without the pull of the start towards 0 (Kingma & Ba 2015, arXiv:1412.6980)
    });
  };
  const shown = (value) => {
    if (value == null) return "";
    const rounded = Number(value.toPrecision(5));
    return rounded !== 0 && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : rounded.toLocaleString("en");
  };
  const spread = (low, high) => {
    if (low == null || high == null) return [0, 1];
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
    return [low - pad, high + pad];
  };

  function build(figure, chart) {
    const plot = figure.querySelector(".plot"), isDark = root.dataset.theme === "dark";
    const style = getComputedStyle(root), colors = isDark ? DARK : LIGHT;
    const soft = style.getPropertyValue("--soft").trim(), grid = style.getPropertyValue("--grid").trim();
    const weight = Number(control("smoothing").value), logarithmic = control("log").checked;
    const positive = chart.curves.every((curve) => curve.values.every((value) => value > 0));
    const tables = chart.curves.map((curve) => {
      const values = weight ? smoothed(curve.values, weight) : curve.values;
      return [data.steps[curve.steps], values];
    });
    const joined = uPlot.join(tables);
    const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
    const options = {
      width: plot.clientWidth, height: 240, scales: {
        x: { time: false },
        y: logarithmic && positive ? { distr: 3 } : { range: (_, low, high) => spread(low, high) },
      },
      cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false }, points: { size: 7 } },
      legend: { live: true },
      axes: [{ ...axis, size: 34, incrs: WHOLE }, { ...axis, size: 58, values: (_, ticks) => ticks.map(shown) }],
      series: [{ label: "step" }, ...chart.curves.map((curve, i) => ({
        label: curve.label, stroke: colors[i % 8], width: 1.6, spanGaps: true, value: (_, value) => shown(value),
        dash: i >= 8 ? [6, 3] : undefined, points: { show: curve.values.length < 3 },
      }))],
    };
    const made = new uPlot(options, joined, plot);
    plot.onkeydown = (event) => walk(event, figure, made, joined);
    return made;
  }

  // The arrow keys move along the points of a chart, and what stands there is read out
  function walk(event, figure, made, joined) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const last = joined[0].length - 1, from = made.cursor.idx ?? (move > 0 ? -1 : last + 1);
    const index = Math.min(Math.max(from + move, 0), last);
    made.setCursor({ left: made.valToPos(joined[0][index], "x"), top: 10 });
    const said = joined.slice(1).map((values, i) => [made.series[i + 1].label, values[index]]);
    figure.querySelector(".read").textContent = `step ${joined[0][index]}: ` +
      said.filter((one) => one[1] != null).map(([label, value]) => `${label} ${shown(value)}`).join(", ");
  }

  // Of the answers those of the chosen steps, of the rows that hurt those of one kind and source
  function choose() {
    steps.forEach((box, i) => {
      document.querySelectorAll(`.samples tr > :nth-child(${i + 2})`).forEach((cell) => { cell.hidden = !box.checked; });
    });
    const [what, source] = ["hurt-what", "hurt-source"].map((id) => control(id)?.value ?? "");
    document.querySelectorAll(".hurt").forEach((part) => {
      part.hidden = part.dataset.what !== what;
      part.querySelectorAll("tbody tr").forEach((row) => { row.hidden = source !== "" && row.dataset.source !== source; });
    });
  }

  function draw() {
    root.dataset.theme = control("theme").value || (dark.matches ? "dark" : "light");
    charts.forEach((one) => one.destroy());
    charts = figures.map((figure, i) => build(figure, data.charts[i]));
  }

  if (chosen.smoothing) control("smoothing").value = chosen.smoothing;
  control("log").checked = Boolean(chosen.log);
  control("theme").value = chosen.theme || "";
  if (chosen.steps?.length === steps.length) steps.forEach((box, i) => { box.checked = chosen.steps[i]; });
  hurting.forEach((one, i) => {
    const value = chosen.hurting?.[i];
    if ([...one.options].some((option) => option.value === value)) one.value = value;
  });
  choose();
  draw();
  if (chosen.y) scrollTo(0, chosen.y);
  for (const id of ["smoothing", "log", "theme"]) control(id).addEventListener("input", () => { draw(); remember(); });
  for (const one of [...steps, ...hurting]) one.addEventListener("input", () => { choose(); remember(); });
  control("whole").addEventListener("click", draw);
  dark.addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    charts.forEach((one, i) => one.setSize({ width: figures[i].querySelector(".plot").clientWidth, height: 240 }));
  });

  const seconds = Number(root.dataset.reload);
  if (seconds) {
    const follow = control("follow");
    let touched = 0;
    if (chosen.follow === false) follow.checked = false;
    for (const kind of ["pointermove", "keydown", "scroll"]) addEventListener(kind, () => { touched = Date.now(); });
    setInterval(() => {
      if (!follow.checked || Date.now() - touched < 1000 * seconds) return;
      remember();
      location.reload();
    }, 1000 * seconds);
  }
  root.dataset.drawn = String(charts.length);
})();
