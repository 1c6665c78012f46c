// What the server knows, asked for again and again: each time only what is new.

const token = new URLSearchParams(location.search).get("token") || "";
const headers = { "Authorization": `Bearer ${token}` };

/** An answer of the server as an object; an Error with `status` otherwise. */
async function get(path, parameters = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { headers });
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), { status: answer.status });
  return answer.json();
}

export const listRuns = () => get("/api/runs");
export const listSamples = (run) => get("/api/samples", { run });

/** Ask a run; its answer has a message or an error. */
export async function command(run, name, given) {
  try {
    const answer = await fetch("/api/control", {
      method: "POST", headers: { ...headers, "Content-Type": "application/json" },
      body: JSON.stringify({ run, command: name, arguments: given }),
    });
    return answer.ok || answer.status === 409 ? await answer.json() : { error: await answer.text() };
  } catch (error) {
    return { error: String(error.message || error) };
  }
}

/** The curves of one run. */
export class Curves {
  constructor(name) {
    this.name = name;
    this.series = {};
    this.events = [];
    this.load = null;
    this.version = this.generation = "";
    this.upto = 0;
    this.range = { first: null, last: null };
  }

  /** Take over what is new; `range` has the first and the last step to show, both null for all. */
  async refresh(version, range) {
    const same = range.first === this.range.first && range.last === this.range.last;
    if (version === this.version && same) return;
    const wanted = { run: this.name };
    if (range.first !== null) wanted.first = range.first;
    if (range.last !== null) wanted.last = range.last;
    if (same && this.generation) Object.assign(wanted, { after: this.upto, generation: this.generation });
    const answer = await get("/api/curves", wanted);
    if (answer.whole) {
      this.series = answer.series;
      this.events = answer.events;
    } else {
      for (const [name, piece] of Object.entries(answer.series)) join(this.series[name], piece);
      this.events = this.events.filter((event) => event.step < this.upto).concat(answer.events);
    }
    const { generation, upto, load } = answer;
    Object.assign(this, { generation, upto, load, version: answer.version, range });
  }
}

/** Put the points of a piece in the place of those from its first one on. */
function join(curve, piece) {
  let kept = curve.x.length;
  while (kept > 0 && curve.x[kept - 1] >= piece.x[0]) kept--;
  for (const part of Object.keys(piece)) curve[part] = curve[part].slice(0, kept).concat(piece[part]);
}
