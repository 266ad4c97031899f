// Browsers start no worker from a page on disk. There, search runs in a hidden frame that talks like a worker;
// the theme's search script looks for the name IFrameWorker in its parent and finds its files by it.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.onerror = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      this.ready = new Promise(resolve => {
        inner.document.open();
        inner.postMessage = data => this.tell(data);
        inner.importScripts = (...urls) => urls.reduce(
          (before, each) => before.then(() => new Promise((done, failed) => {
            const script = inner.document.createElement("script");
            script.src = each;
            script.onload = done;
            script.onerror = failed;
            inner.document.body.append(script);
          })), Promise.resolve());
        inner.document.write("<!doctype html><body></body>");
        inner.document.close();
        const script = inner.document.createElement("script");
        script.src = url;
        script.onload = () => resolve(inner);
        inner.document.body.append(script);
      });
      this.frame = frame;
    }
    tell(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
    postMessage(data) {
      this.ready.then(inner => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  }
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
