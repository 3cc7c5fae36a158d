// A page of an origin that is not allowed: tries to call, without any token, and tells the console whether it could.
'use strict';
addEventListener('message', async (message) => {
  if (!/^http:\/\/(localhost|127\.0\.0\.1):\d+$/.test(message.origin) || message.source !== parent) return;
  let readable = false;
  try {
    await fetch(String(message.data.url), {
      method: 'POST', headers: { 'Content-Type': 'application/json', Accept: 'application/json, text/event-stream' },
      body: '{"jsonrpc":"2.0","id":1,"method":"ping"}', credentials: 'omit', signal: AbortSignal.timeout(8000),
    });
    readable = true;
  } catch {
    // refused by the browser, for want of CORS headers
  }
  message.source.postMessage({ readable }, message.origin);
});
parent.postMessage({ ready: true }, '*');
