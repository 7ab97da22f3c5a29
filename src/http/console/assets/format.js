// Numbers as people read them. Pure.

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes) {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < BYTES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${BYTES[unit]}`;
}

export function duration(micros) {
  if (micros === null || micros === undefined) return "–";
  if (micros < 1000) return `${micros} µs`;
  if (micros < 1e6) return `${(micros / 1000).toFixed(micros < 1e4 ? 1 : 0)} ms`;
  if (micros < 6e7) return `${(micros / 1e6).toFixed(2)} s`;
  return `${Math.floor(micros / 6e7)} min ${Math.round((micros % 6e7) / 1e6)} s`;
}

export function count(number) {
  return number.toLocaleString("en");
}

export function cores(millis) {
  return (millis / 1000).toFixed(1);
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString("en-GB", { hour12: false }) + "." + String(Math.floor(ms % 1000)).padStart(3, "0");
}

export function day(ms) {
  return new Date(ms).toLocaleString("en-GB", { hour12: false });
}

export function short(id) {
  return id.length > 20 ? `${id.slice(0, 8)}…${id.slice(-4)}` : id;
}

// Of an image: what comes behind the name of its hash.
export function imageName(image) {
  return image ? image.replace(/^sha256:/, "").slice(0, 12) : "–";
}

export function fraction(part, whole) {
  return whole > 0 ? Math.min(1, part / whole) : 0;
}

export function reason(end) {
  if (!end) return "";
  const said = {
    stopped: "stopped on request",
    idle: "it had no request for its keep-alive",
    image_unavailable: "the image could not be read",
    mount_failed: "the image could not be mounted",
    run_failed: "the container could not be run",
    exited: "the container exited",
    not_ready: "the readiness probe did not answer in time",
    refused: "the VM refused the order",
    vm_lost: "the VM was lost",
    no_room: "no VM had room in time",
  };
  const detail = end.detail === undefined || end.detail === null ? "" : `: ${typeof end.detail === "string" ? end.detail : JSON.stringify(end.detail)}`;
  return (said[end.kind] ?? end.kind) + detail;
}
