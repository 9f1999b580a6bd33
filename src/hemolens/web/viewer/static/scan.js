// The pixels of a scan: fetched in pieces from the slice that is looked at outward, kept while the page is open.

const KEPT = new Map(); // study id -> Scan, oldest first
const MOST_BYTES = 768 * 2 ** 20;

export function scanOf(data) {
  let scan = KEPT.get(data.study);
  if (!scan) {
    scan = new Scan(data);
    KEPT.set(data.study, scan);
    let bytes = 0;
    for (const other of KEPT.values()) bytes += other.bytes;
    for (const [id, other] of KEPT) {
      if (bytes <= MOST_BYTES || id === data.study) break;
      bytes -= other.bytes;
      KEPT.delete(id);
    }
  }
  return scan;
}

export class Scan {
  constructor(data) {
    this.url = data.scan;
    this.slices = data.slices;
    this.size = data.rows * data.columns;
    this.chunk = data.chunk;
    this.bytes = 2 * this.size * this.slices;
    this.parts = new Array(Math.ceil(this.slices / this.chunk));
    this.watchers = new Set();
    this.error = null;
    this.busy = 0;
    this.wanted = data.first;
  }

  /** Stored values of slice k (Int16Array), or null while it is on its way. */
  slice(k) {
    const part = this.parts[Math.floor(k / this.chunk)];
    if (!(part instanceof Int16Array)) return null;
    const at = (k % this.chunk) * this.size;
    return part.subarray(at, at + this.size);
  }

  /** Fetch what is missing, nearest to slice k first. */
  want(k) {
    this.wanted = k;
    while (this.busy < 2) {
      const middle = Math.floor(this.wanted / this.chunk);
      let best = -1;
      for (let i = 0; i < this.parts.length; i++) {
        if (this.parts[i] === undefined && (best < 0 || Math.abs(i - middle) < Math.abs(best - middle))) best = i;
      }
      if (best < 0) return;
      this.fetch(best);
    }
  }

  async fetch(i) {
    this.parts[i] = "coming";
    this.busy += 1;
    try {
      const first = i * this.chunk, last = Math.min(this.slices, first + this.chunk);
      const answer = await fetch(`${this.url}/${first}-${last}`, { credentials: "same-origin" });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || "The server does not answer. Reload the page.");
      this.parts[i] = new Int16Array(await answer.arrayBuffer());
      this.error = null;
    } catch (error) {
      this.parts[i] = undefined;
      this.error = error instanceof TypeError ? "The server does not answer. Check that it runs, then reload the page." : error.message;
      KEPT.forEach((scan, id) => { if (scan === this) KEPT.delete(id); });
    } finally {
      this.busy -= 1;
    }
    for (const tell of this.watchers) tell();
    if (!this.error) this.want(this.wanted);
  }
}
