// The HTTP API, as the CLI uses it. The session is in a cookie that no script can read.

const DEADLINE_MS = 60_000;

export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail);
    this.status = status;
    this.code = code;
  }

  get is_away() {
    return this.status === 0;
  }
}

export class Api {
  constructor(on_signed_out) {
    this.tenant = null;
    this.on_signed_out = on_signed_out;
  }

  get(path) {
    return this.call("GET", path);
  }

  async call(method, path, body, parse = (response) => response.json()) {
    const headers = { accept: "application/json", "x-faasnet-csrf": "1" };
    if (this.tenant) headers["faasnet-tenant"] = this.tenant;
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: "same-origin",
        redirect: "error",
        signal: AbortSignal.timeout(DEADLINE_MS),
      });
    } catch (error) {
      throw new ApiError(0, "away", `the manager does not answer (${error.message})`);
    }
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      const detail = problem.detail ?? `the manager answered with status ${response.status}`;
      if (response.status === 401) this.on_signed_out();
      throw new ApiError(response.status, problem.code ?? "unknown", detail);
    }
    return response.status === 204 ? null : parse(response);
  }

  text(path) {
    return this.call("GET", path, undefined, (response) => response.text());
  }

  function(name, rest = "") {
    return `/v1/functions/${encodeURIComponent(name)}${rest}`;
  }
}
