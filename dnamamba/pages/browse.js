// The page of `dnamamba browse`: igv.js with two tracks of our own. All data is in the page's element `data`.
"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const escape = (value) => String(value).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
  const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const BASES = "ACGT";
  const COLOURS = { A: "#109648", C: "#255C99", G: "#B57A00", T: "#D62839" };
  const LETTER_PIXELS = 3; // narrower letters are no letters
  const STEPS = [0.1, 0.2, 0.5, 1, 2]; // where the axis of predicted bases may end, in bits
  const CLICK_PIXELS = 6;

  function axis(context, width, height, ticks, y) {
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.font = "10px sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillStyle = context.strokeStyle = "#333";
    for (const tick of ticks) {
      const at = Math.min(Math.max(y(tick), 6), height - 6);
      context.fillText(+tick.toPrecision(2), width - 10, at);
      context.fillRect(width - 7, y(tick) - 0.5, 5, 1);
    }
    context.fillRect(width - 2, Math.min(...ticks.map(y)), 1, Math.abs(y(ticks[0]) - y(ticks.at(-1))));
  }

  // What IGV asks of a track: the features in an interval, to draw them, and what to say of a click.
  class PageTrack extends igv.TrackBase {
    async postInit() {
      return this;
    }
    async getFeatures(contig, start, end) {
      return contig === data.contig ? [{ chr: contig, start, end }] : [];
    }
    supportsWholeGenome() {
      return false;
    }
    menuItemList() {
      return [];
    }
  }

  // Predicted bases: letters as high as their probability times the information at the position, in bits.
  class LogoTrack extends PageTrack {
    init(config) {
      super.init(config);
      this.type = "logo";
      this.autoscale = true;
      this.probabilities = bytes(config.probabilities);
      this.top = this.tallest = config.top;
      this.y = (bits) => 4 + (1 - Math.min(bits / this.top, 1)) * (this.height - 8);
    }
    at(position) {
      const first = 4 * (position - data.start);
      if (position < data.start || position >= data.end) return null;
      const counts = Array.from(this.probabilities.subarray(first, first + 4));
      const sum = counts[0] + counts[1] + counts[2] + counts[3];
      if (sum === 0) return null;
      const p = counts.map((count) => count / sum);
      return { p, bits: 2 + p.reduce((total, each) => total + (each > 0 ? each * Math.log2(each) : 0), 0) };
    }
    draw({ context, bpStart, bpPerPixel, pixelWidth, features }) {
      if (!features || features.length === 0) return;
      const base = 1 / bpPerPixel;
      if (base < LETTER_PIXELS) return this.drawInformation(context, bpStart, bpPerPixel, pixelWidth);
      context.textAlign = "center";
      context.textBaseline = "alphabetic";
      context.font = "bold 100px sans-serif";
      for (let position = Math.floor(bpStart); (position - bpStart) * base < pixelWidth; position++) {
        const found = this.at(position);
        if (!found) continue;
        let foot = this.y(0);
        const order = [0, 1, 2, 3].sort((a, b) => found.p[a] - found.p[b]);
        for (const number of order) {
          const height = found.p[number] * Math.min(found.bits / this.top, 1) * (this.height - 8);
          if (height < 0.5) continue;
          context.save();
          context.translate((position + 0.5 - bpStart) * base, foot);
          context.scale(base / 78, height / 73); // the width and height of a bold capital of 100 px
          context.fillStyle = COLOURS[BASES[number]];
          context.fillText(BASES[number], 0, 0);
          context.restore();
          foot -= height;
        }
      }
    }
    // Called before each drawing: where letters are drawn, the axis ends above the tallest one that is seen, so that
    // they are read where a model knows little, too.
    doAutoscale() {
      const { start, end, bpPerPixel } = this.browser.referenceFrameList[0];
      let top = this.tallest;
      if (1 / bpPerPixel >= LETTER_PIXELS) {
        let bits = 0;
        for (let position = Math.floor(start); position < end; position++) {
          bits = Math.max(bits, this.at(position)?.bits || 0);
        }
        top = Math.min(STEPS.find((step) => step >= bits) || top, top);
      }
      if (top !== this.top) {
        this.top = top;
        this.trackView.paintAxis();
      }
      return { min: 0, max: top };
    }
    drawInformation(context, bpStart, bpPerPixel, pixelWidth) {
      context.fillStyle = "#8c8c8c";
      for (let pixel = 0; pixel < pixelWidth; pixel++) {
        let sum = 0, count = 0;
        const first = Math.floor(bpStart + pixel * bpPerPixel), last = Math.ceil(bpStart + (pixel + 1) * bpPerPixel);
        const step = Math.max(1, Math.floor((last - first) / 64));
        for (let position = first; position < last; position += step) {
          const found = this.at(position);
          if (found) (sum += found.bits), count++;
        }
        if (count) context.fillRect(pixel, this.y(sum / count), 1, this.y(0) - this.y(sum / count));
      }
    }
    paintAxis(context, width, height) {
      axis(context, width, height, [0, this.top / 2, this.top], this.y);
    }
    popupData({ genomicLocation }) {
      const position = Math.floor(genomicLocation), found = this.at(position);
      if (!found) return [];
      const shown = found.p.map((each, number) => ({ name: `p(${BASES[number]})`, value: each.toFixed(3) }));
      return [{ name: "position", value: `${escape(data.contig)}:${(position + 1).toLocaleString("en")}` }, ...shown,
        { name: "information", value: `${found.bits.toFixed(2)} bits` }];
    }
  }

  // Variants: a stem from 0 to the score and a dot at it, in the score's colour.
  class VariantsTrack extends PageTrack {
    init(config) {
      super.init(config);
      this.type = "variants";
      this.variants = config.variants;
      [this.low, this.high] = config.range;
      this.y = (score) => 8 + (this.high - score) / (this.high - this.low) * (this.height - 16);
    }
    place({ start, length, score }, bpStart, bpPerPixel) {
      const shown = score === null ? Math.max(this.low, Math.min(0, this.high))
        : Math.min(Math.max(score, this.low), this.high);
      return [(start + length / 2 - bpStart) / bpPerPixel, this.y(shown)];
    }
    draw({ context, bpStart, bpPerPixel, pixelWidth, features }) {
      if (!features || features.length === 0) return;
      const zero = this.y(Math.min(Math.max(0, this.low), this.high));
      context.fillStyle = "#999";
      context.fillRect(0, zero - 0.5, pixelWidth, 1);
      for (const variant of this.variants) {
        const [x, y] = this.place(variant, bpStart, bpPerPixel);
        if (x < -5 || x > pixelWidth + 5) continue;
        context.fillStyle = context.strokeStyle = colourOf(variant.score);
        context.lineWidth = 1.2;
        context.beginPath();
        context.moveTo(x, zero);
        context.lineTo(x, y);
        context.stroke();
        context.beginPath();
        context.arc(x, y, 3.5, 0, 2 * Math.PI);
        variant.score === null ? context.stroke() : context.fill();
      }
    }
    paintAxis(context, width, height) {
      axis(context, width, height, [...new Set([this.high, 0, this.low])], this.y);
    }
    popupData({ genomicLocation, y, referenceFrame }) {
      const { bpPerPixel } = referenceFrame;
      const near = this.variants.map((variant) => {
        const [x, height] = this.place(variant, genomicLocation, bpPerPixel);
        return { variant, across: Math.abs(x), distance: Math.hypot(x, height - y) };
      }).filter(({ across }) => across <= CLICK_PIXELS).sort((a, b) => a.distance - b.distance);
      return near.slice(0, 3).flatMap(({ variant }, number) => [
        ...(number ? ["<hr>"] : []),
        { name: "variant", value: `${escape(data.contig)}:${(variant.start + 1).toLocaleString("en")} ` +
          `${escape(variant.ref)} &gt; ${escape(variant.alt)}` },
        ...variant.fields.map(([name, value]) => ({ name: escape(name), value: escape(value) })),
      ]);
    }
  }

  // Blue above 0, orange below, grey near it; of scores that are never negative, orange the higher the score.
  function colourOf(score) {
    if (score === null) return "#767676";
    const share = Math.sqrt(Math.min(Math.abs(score) / data.score_limit, 1));
    const from = [150, 150, 150], to = score > 0 && data.score_signed ? [0, 90, 178] : [213, 94, 0];
    return `rgb(${from.map((each, number) => Math.round(each + share * (to[number] - each))).join()})`;
  }

  igv.registerTrackClass("logo", LogoTrack);
  igv.registerTrackClass("variants", VariantsTrack);
  for (const track of data.tracks) {
    for (const feature of track.features || []) {
      const { name, chr, start, end, strand } = feature;
      const place = `${escape(chr)}:${(start + 1).toLocaleString("en")}-${end.toLocaleString("en")}`;
      const shown = [["name", name], ["strand", strand]].filter(([, value]) => value);
      feature.popupData = () => [...shown.map(([key, value]) => ({ name: key, value: escape(value) })),
        { name: "position", value: place }];
    }
  }
  try {
    window.browser = await igv.createBrowser(document.getElementById("igv"), {
      reference: { id: data.genome, name: data.genome, fastaURL: data.fasta, wholeGenomeView: false },
      loadDefaultGenomes: false,
      search: false,
      showSampleNames: false,
      showSVGButton: true,
      locus: data.locus,
      tracks: data.tracks,
    });
    document.body.dataset.ready = "true";
  } catch (error) {
    document.getElementById("igv").textContent = `The browser could not be drawn: ${error.message || error}`;
    throw error;
  }
})();
