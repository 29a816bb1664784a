// Browsers start no Worker from a file, so the search of a site that is opened as files runs in a
// hidden frame instead. mkdocs-material asks for `IFrameWorker` where it does so.
const INSIDE = `
  window.postMessage = (data) => frameElement.dispatchEvent(new MessageEvent("message", {data}));
  window.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => load(url)),
    Promise.resolve());
  const load = (url) => new Promise((loaded, failed) => {
    const script = document.createElement("script");
    Object.assign(script, {src: url, onload: loaded, onerror: failed});
    document.body.append(script);
  });
`;

class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    this.ready = new Promise((loaded) => this.frame.addEventListener("load", loaded));
    this.frame.addEventListener("message", ({data}) => {
      const message = new MessageEvent("message", {data});
      this.dispatchEvent(message);
      this.onmessage?.(message);
    });
    this.frame.srcdoc = `<body><script>${INSIDE}<\/script><script src="${url}"><\/script></body>`;
    document.body.append(this.frame);
  }

  postMessage(data) {
    this.ready.then(() =>
      this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
