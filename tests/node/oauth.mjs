// node oauth.mjs URL v1|v2: sign in with an official TypeScript SDK. Prints where the person must go, reads where they came back to.
import { createInterface } from "node:readline/promises";

const [url, version] = process.argv.slice(2);
const [core, http] = version === "v1"
  ? [await import("@modelcontextprotocol/sdk/client/index.js"), await import("@modelcontextprotocol/sdk/client/streamableHttp.js")]
  : [await import("@modelcontextprotocol/client"), await import("@modelcontextprotocol/client")];
const kept = {};
const provider = {
  redirectUrl: "http://localhost:7777/callback",
  clientMetadata: { client_name: `ts-${version}`, redirect_uris: ["http://localhost:7777/callback"], token_endpoint_auth_method: "none" },
  state: () => "state-of-the-program",
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  codeVerifier: () => kept.verifier,
  redirectToAuthorization: (where) => { console.log(where.href); },
};
const connect = async () => {
  const client = new core.Client({ name: `ts-${version}`, version: "1.0.0" });
  const transport = new http.StreamableHTTPClientTransport(new URL(url), { authProvider: provider });
  try {
    await client.connect(transport);
  } catch (error) {
    if (kept.tokens) throw error;
    return { transport };
  }
  return { client, transport };
};
const first = await connect();
const back = new URL(await createInterface({ input: process.stdin }).question(""));
await first.transport.finishAuth(version === "v1" ? back.searchParams.get("code") : back.searchParams);
const { client } = await connect();
const who = await client.callTool({ name: "whoami", arguments: {} });
console.log(JSON.stringify(who.structuredContent));
await client.close();
process.exit(0);
